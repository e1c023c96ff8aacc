"""YAML of strangers: plain values only, without aliases, tags and duplicate keys, and small enough to be a recipe."""

from __future__ import annotations

import re

import yaml

from zoo.errors import ZooError

LARGEST, DEEPEST = 64 * 1024, 8  # bytes of a recipe; levels of nesting


class _Loader(yaml.SafeLoader):
    """YAML without aliases, tags and duplicate keys."""

    yaml_implicit_resolvers: dict = {}  # filled below
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise ZooError(f"line {event.start_mark.line + 1}: a recipe can't use YAML aliases (*name)")
        if getattr(event, "tag", None):
            raise ZooError(f"line {event.start_mark.line + 1}: a recipe can't use YAML tags ({event.tag})")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ZooError(f"line {event.start_mark.line + 1}: a recipe is nested at most {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen: set = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ZooError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every word that YAML 1.1 or `_Loader` would read as something else, such as 1e3."""


# YAML 1.2's plain words. Those of 1.1 read 1e-3 as a word, no as false, 010 as eight, 1:30 as ninety and 2024-01-01 as
# a date.
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    # no two ways to match one text, or a word of 60,000 digits takes minutes
    (
        "float",
        r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _way in (_Loader, _Dumper):
        _way.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def parse(text: str, where: str) -> dict:
    """YAML text -> nested dict with words as keys. Raises ZooError; no text makes it raise anything else, or run
    anything.
    """
    check_size(len(text), where)
    try:
        out = yaml.load(text, _Loader)  # a SafeLoader
    except ZooError as error:
        raise ZooError(f"{where}, {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise ZooError(f"{where} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(out, dict) or not all(isinstance(key, str) for key in out):
        raise ZooError(f"{where} is no recipe: it has to be a mapping of groups such as data, backbone and task")
    return out


def check_size(size: int, where: str) -> None:
    if size > LARGEST:
        raise ZooError(f"{where} is larger than {LARGEST // 1024} KiB, so it is no recipe")


def written(values: dict) -> str:
    """The text that `parse` reads as these values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
