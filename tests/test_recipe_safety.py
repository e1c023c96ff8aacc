"""A recipe is data, safe to take from a stranger: nothing in it is imported, run or opened, and no text brings more
than a sentence.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, List, Literal  # noqa: UP035

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_example import BASE, TEXTS, probe, sentence, short  # noqa: F401

import zoo
from zoo import registry
from zoo.card import read_card
from zoo.errors import ZooError
from zoo.recipe import check_signature, keys, parse, read, resolve, save
from zoo.tasks.base import PretextTask

FUZZ = settings(max_examples=120, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


# ---- tasks that a recipe can't describe ----------------------------------------------------------


def with_args(self, backbone, *args: int): ...
def with_kwargs(self, backbone, **words: int): ...
def with_callable(self, backbone, act: Callable[[int], int] = abs): ...
def with_bare_callable(self, backbone, act: typing.Callable = abs): ...  # noqa: UP006
def with_class(self, backbone, head: PretextTask | None = None): ...
def with_type(self, backbone, kind: type = int): ...
def with_type_of(self, backbone, kind: type[PretextTask] = PretextTask): ...
def with_path(self, backbone, file: Path = Path("x")): ...
def with_any(self, backbone, what: Any = 1): ...
def with_dict(self, backbone, words: dict[str, int] | None = None): ...
def with_bare_list(self, backbone, sizes: list = None): ...
def with_typing_list(self, backbone, sizes: List = None): ...  # noqa: UP006
def with_list_of_any(self, backbone, sizes: list[Any] = None): ...
def with_nested(self, backbone, sizes: list[list[Callable] | int] = None): ...
def without_annotation(self, backbone, width=3): ...
def with_unknown(self, backbone, width: Nowhere = 3): ...  # noqa: F821
def with_name(self, backbone, name: str = "x"): ...
def with_seed(self, backbone, seed: int = 3): ...
def with_optim(self, backbone, optim: str = "adam"): ...


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (with_args, r"the task probe takes \*args; its arguments have to be written out"),
        (with_kwargs, r"takes \*\*words"),
        (with_callable, "has an argument act of type"),
        (with_bare_callable, "has an argument act"),
        (with_class, "has an argument head"),
        (with_type, "has an argument kind"),
        (with_type_of, "has an argument kind"),
        (with_path, "has an argument file"),
        (with_any, "has an argument what"),
        (with_dict, "has an argument words"),
        (with_bare_list, "has an argument sizes"),
        (with_typing_list, "has an argument sizes"),
        (with_list_of_any, "has an argument sizes"),
        (with_nested, "has an argument sizes"),
        (without_annotation, "doesn't say what type its argument width has"),
        (with_unknown, "an annotation in __init__ that can't be read: name 'Nowhere'"),
        (with_name, "has an argument called name"),
        (with_seed, "has an argument called seed, which is the seed of a whole run"),
        (with_optim, "has an argument called optim"),
    ],
)
def test_signatures_that_are_refused(init, said, probe):  # noqa: F811
    task = probe(init)
    for call in (
        lambda: check_signature(task),
        lambda: resolve({**BASE, "task": {"name": "probe"}}),
        lambda: keys({"task.name": "probe"}),
    ):
        with pytest.raises(ZooError, match=said):
            call()


def test_signatures_that_are_taken(probe):  # noqa: F811
    def init(
        self,
        backbone: zoo.PretextTask,
        a: int,
        b: float = 1,
        c: bool = True,
        d: str = "x",
        e: Literal["a", "b"] = "a",
        f: int | None = None,
        *,
        g: list[int] | None = None,
        h: tuple[int, ...] = (1,),
        i: typing.Annotated[int, "pixels"] = 1,
        help: bool = False,
    ):
        pass

    check_signature(probe(init))
    resolved = resolve({**BASE, "task": {"name": "probe", "a": 1, "help": True}})
    assert resolved["task"] == {
        "name": "probe",
        "a": 1,
        "b": 1.0,
        "c": True,
        "d": "x",
        "e": "a",
        "f": None,
        "g": None,
        "h": [1],
        "i": 1,
        "help": True,
    }
    assert sentence(lambda: resolve({**BASE, "task": {"name": "probe"}})) == "the recipe lacks task.a"


def test_every_built_in_task_can_be_described():
    built_in = [entry.name for entry in registry.list_tasks() if entry.origin == "zoo"]
    for name in built_in:
        check_signature(registry.find_task(name))
    assert built_in


# ---- what a stranger might write -----------------------------------------------------------------


def test_no_file_that_a_recipe_names_is_read(tmp_path, probe):  # noqa: F811
    def init(self, backbone, width: int = 1, sizes: list[int] | None = None, word: str = ""):
        pass

    probe(init)
    file = tmp_path / "values"
    file.write_text("3\n4\n")
    for key in ("task.width", "task.sizes", "data.size", "optim.lr", "trainer.max_steps", "optim.name", "seed"):
        for word in (str(file), f"@{file}", f"file://{file}"):
            assert str(file) in sentence(lambda: resolve({**BASE, "task": {"name": "probe"}}, {key: word}))
    assert resolve({**BASE, "task": {"name": "probe", "word": str(file)}})["task"]["word"] == str(file)


VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"name": "simclr", "hidden": -1}}, "task.hidden is -1; it has to be at least 1"),
        ({"task": {"name": "simclr", "hidden": 10**14}}, "the network of this recipe takes more than"),
        (
            {"backbone": {"name": "test_resnet", "drop_rate": 5.0}},
            "test_resnet with {'drop_rate': 5.0} can't read images of 16 pixels: ValueError: ",
        ),
        (
            {"backbone": VIT | {"drop_path_rate": 5.0}},
            "'drop_path_rate': 5.0} can't read images of 16 pixels: RuntimeError: ",
        ),
        (
            {"backbone": {"name": "test_resnet", "layers": [0]}},
            "test_resnet with {'layers': [0]} can't read images of 16 pixels: AttributeError: ",
        ),
        *(
            (
                {"backbone": {"name": "test_resnet", "in_chans": number}},
                f"test_resnet with {{'in_chans': {number}}} can't read images",
            )
            for number in (0, 2)
        ),
        ({"backbone": {"name": "test_resnet", "in_chans": -1}}, "the network of this recipe can't be built: "),
        (
            {"backbone": {"name": "test_resnet", "layers": 3}},
            "timm can't build test_resnet with {'layers': 3, 'img_size': 16}: TypeError: ",
        ),
        ({"backbone": {"name": "test_resnet", "layers": []}}, "test_resnet"),
    ],
    ids=short,
)
def test_values_that_no_network_takes(changes, said, tmp_path):
    recipe = {**BASE, "data": {"name": "digits", "size": 16}, **changes}
    assert said in sentence(lambda: zoo.pretrain(recipe, out=tmp_path / "run", smoke=True, progress=False))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"data": {"name": "digits", "size": 1}},
        {"data": {"name": "digits", "size": 2}},
    ],
    ids=short,
)
def test_values_at_the_edge_are_trained_with_and_exported(changes, tmp_path):
    recipe = {**BASE, "data": {"name": "digits", "size": 16}, **changes}
    run = zoo.pretrain(recipe, out=tmp_path / "run", smoke=True, progress=False)
    assert read_card(run / "checkpoint")["recipe"] == read(run / "recipe.yaml")


# ---- anything at all -----------------------------------------------------------------------------

PIECES = [
    "&a ",
    "*a",
    "!!python/name:os.system ",
    "!x ",
    "<<: ",
    "? ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "#",
    "|\n",
    ">\n",
    "'",
    '"',
    "%",
    "@",
    "`",
    "\t",
    "\n",
    "---\n",
    "...\n",
    "~",
    "null",
    "1e999",
    ".nan",
    "9" * 30,
    "\\x",
    '"\\UFFFFFFFF"',
    "\x00",
    "\x85",
    "\ufeff",
    "\u00fc",
    "{a: ",
    "[[[[[[[[",
    "task: ",
    "name: ",
    "{}",
    "2024-01-01",
    "0x",
    "1_0",
    "true",
    "-",
]


@st.composite
def mutated(draw) -> str:
    """A recipe of ours with a few pieces cut out, put in and moved."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 10, 40])))
        piece = draw(st.sampled_from([*PIECES, text[start:stop] * 2]) | st.text(max_size=6))
        text = text[:start] + piece + text[stop:]
    return text


@FUZZ
@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_a_mapping_or_a_zoo_error(text):
    with contextlib.suppress(ZooError):
        assert isinstance(parse(text, "x"), dict)


@FUZZ
@given(mutated())
def test_a_mutated_recipe_is_resolved_or_a_zoo_error(text):
    with contextlib.suppress(ZooError):
        parsed = parse(text, "x")
        assert isinstance(parsed, dict)
        resolved = resolve(parsed)
        assert resolve(resolved) == resolved


ODD = [
    "1e3",
    "no",
    "on",
    "~",
    "",
    "null",
    "2024-01-01",
    "0x10",
    "1_000",
    "1:30",
    "010",
    ".inf",
    "<<",
    "=",
    "#",
    "a: b",
    "- a",
    "[",
    "*a",
    "&a",
    "!a",
    "\n",
    " a ",
]
PLAIN = (
    st.text()
    | st.sampled_from(ODD)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)


@FUZZ
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), PLAIN | st.lists(PLAIN, max_size=3), max_size=4))
def test_every_plain_value_is_saved_so_that_it_reads_back(tmp_path_factory, words):
    resolved = resolve({**BASE, "backbone": {**words, "name": "x"}})
    saved = read(save(resolved, tmp_path_factory.getbasetemp() / "saved.yaml"))
    assert saved == resolved and repr(saved) == repr(resolved)
