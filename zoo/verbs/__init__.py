"""The verbs of the command line: each takes the parsed words, prints for people, and returns what --json prints.

Everything but the standard library is imported inside the verb that needs it, so that listing and helping stay quick.
"""

from zoo.verbs.hubs import export, import_, pull, push, verify
from zoo.verbs.listing import KINDS, data, info, list_
from zoo.verbs.training import adapt, evaluate, new_task, pretrain, quickstart, report, reproduce

__all__ = [
    "KINDS",
    "adapt",
    "data",
    "evaluate",
    "export",
    "import_",
    "info",
    "list_",
    "new_task",
    "pretrain",
    "pull",
    "push",
    "quickstart",
    "report",
    "reproduce",
    "verify",
]
