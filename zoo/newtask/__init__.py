"""`zoo new-task NAME --kind KIND`: the skeleton of a package with a pretext task, which trains and passes its tests as
it is written.

The skeletons lie in templates/: the files that all kinds share, and those of each kind in a folder of its name. In them
@NAME@ and the like stand for words of the task.
"""

from __future__ import annotations

import re
from pathlib import Path

from zoo.errors import ZooError, nearest
from zoo.paths import expanded, write_text
from zoo.registry import IMPORTED, NAME, list_tasks

TAKEN_CLASSES = ("PretextTask", "TaskOutput")
TEMPLATES = Path(__file__).parent / "templates"
RECIPES = {  # kind of task -> end of its recipe's name: the networks and the data
    "image": "test-resnet-fashion-mnist",
    "text": "bert-emoji",
    "audio": "test-resnet-tones",
    "pair": "test-resnet-bert-emoji",
}
KINDS = tuple(RECIPES)
EXTRAS = {"image": "", "text": "[text]", "audio": "[audio]", "pair": "[text]"}


def new_task(name: str, out: str | Path | None = None, kind: str = "image") -> Path:
    """Write the package zoo-NAME into `out` (by default the folder zoo-NAME) and return its folder.

    Args:
        name: of the task: lower-case words joined by hyphens.
        out: folder of the package, which is empty or doesn't exist.
        kind: what the task learns from: image, text, audio, or pair for images with texts.

    Raises ZooError for a name that isn't one, a name that is taken, an unknown kind, and a folder that holds something.
    """
    _check_name(name)
    if kind not in KINDS:
        raise ZooError(f"{kind!r} is not a kind of task{nearest(str(kind), KINDS)}")
    folder = expanded(out if out is not None else f"zoo-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{folder} exists and isn't empty; add --out ANOTHER-FOLDER")
    words = _words(name, kind)
    for path, template in _files(words, kind).items():
        write_text(folder / path, _filled(template.read_text(encoding="utf-8"), words))
    return folder


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name.endswith("-") or "--" in name:
        raise ZooError(
            f"{name!r} can't name a task; use lower-case letters and digits, in words joined by hyphens, such as "
            "my-task"
        )
    if name == IMPORTED:
        raise ZooError(f"{name} stands in a card for the task that nobody knows; choose another name")
    for entry in list_tasks():
        if entry.name == name:
            raise ZooError(f"there is a task {name} already, from {entry.origin}; choose another name")


def _words(name: str, kind: str) -> dict[str, str]:
    """What stands in the templates' places."""
    module = "zoo_" + name.replace("-", "_")
    points = f'\n[project.entry-points."zoo.data"]\n{name}-tones = "{module}.data:tones"\n' if kind == "audio" else ""
    return {
        "NAME": name,
        "MODULE": module,
        "CLASS": class_name(name),
        "RECIPE": f"{name}-{RECIPES[kind]}.yaml",
        "EXTRA": EXTRAS[kind],
        "POINTS": points,
    }


def _files(words: dict[str, str], kind: str) -> dict[str, Path]:
    """Path in the package -> its template."""
    module, own = words["MODULE"], TEMPLATES / kind
    out = {
        "pyproject.toml": TEMPLATES / "pyproject.toml.txt",
        "README.md": TEMPLATES / "README.md.txt",
        f"{module}/__init__.py": TEMPLATES / "__init__.py.txt",
        f"{module}/task.py": own / "task.py.txt",
        "tests/test_task.py": own / "test_task.py.txt",
        f"recipes/{words['RECIPE']}": own / "recipe.yaml.txt",
    }
    return out | ({f"{module}/data.py": own / "data.py.txt"} if (own / "data.py.txt").exists() else {})


def class_name(name: str) -> str:
    """my-idea -> MyIdeaTask: a name that no Python word and nothing imported has."""
    camel = "".join(word.capitalize() for word in name.split("-"))
    camel = camel if camel[0].isalpha() else f"The{camel}"
    camel = camel if camel.endswith("Task") else f"{camel}Task"
    return f"My{camel}" if camel in TAKEN_CLASSES else camel


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub("@(" + "|".join(words) + ")@", lambda match: words[match[1]], text)
