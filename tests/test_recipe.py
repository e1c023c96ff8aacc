"""A recipe is read, checked and completed, or refused in one sentence."""

from __future__ import annotations

import contextlib
import inspect
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_example import BASE, NAMES, TEXTS, no_hang, probe, sentence, short  # noqa: F401

from zoo import cli, registry, strict_yaml
from zoo import recipe as recipes
from zoo.errors import ZooError
from zoo.recipe import find, flat, groups, keys, overrides, parse, read, resolve, save


def change(**values: Any) -> dict:
    return resolve(BASE, {key.replace("__", "."): value for key, value in values.items()})


# ---- reading -------------------------------------------------------------------------------------

WORDS = (
    "no",
    "No",
    "on",
    "off",
    "yes",
    "y",
    "tRue",
    "2024-01-01",
    "0x10",
    "0o7",
    "1_000",
    "1:30",
    "1\u0663",
    "=",
    "e3",
    "1e",
    ".",
)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-3", 1e-3),
        ("1E+3", 1000.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25", -0.25),
        ("600", 600),
        ("+5", 5),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("'1'", "1"),
        ("a # b", "a"),
        *((word, word) for word in WORDS),
    ],
    ids=short,
)
def test_plain_words(word, value):
    found = parse(f"key: {word}", "x")["key"]
    assert found == value and type(found) is type(value)


def test_a_leading_zero_is_not_octal():
    assert parse("key: 010", "x")["key"] == 10


def test_what_is_a_merge_elsewhere_is_a_key_like_any_other():
    assert parse("<<: {a: 1}", "x") == {"<<": {"a": 1}}
    assert "<<.a is not a key" in sentence(lambda: resolve(parse(f"<<: {{a: 1}}\n{yaml.safe_dump(BASE)}", "x")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1\nb: *x", "x, line 2: a recipe can't use YAML aliases"),
        ("a: &x [*x]", "aliases"),
        ("a: 1\nb: !!str 1", r"x, line 2: a recipe can't use YAML tags \(tag:yaml.org,2002:str\)"),
        ("a: !own 1", "YAML tags"),
        ("a: ! 1", "YAML tags"),
        ("!!map {a: 1}", "YAML tags"),
        ("%TAG ! tag:x,2000:\n---\na: !y 1", "YAML tags"),
        ("a: !!binary aGk=", "YAML tags"),
        ("a: !!python/object/apply:os.system ['true']", "YAML tags"),
        ("a: 1\nb: 2\na: 3", "x, line 3: a is given twice"),
        ("a: {b: 1, b: 1}", "b is given twice"),
        ("1: a\n'1': b", "1 is given twice"),
        ("a: [", "x is not valid YAML: .*line 1"),
        ("a: 'b", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("\ta: 1", "not valid YAML"),
        ("a: 1\n---\nb: 1", "not valid YAML: expected a single document"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("\ud800", "not valid YAML"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("", "x is no recipe: it has to be a mapping"),
        ("~", "no recipe"),
        ("- a", "no recipe"),
        ("word", "no recipe"),
        ("3", "no recipe"),
        ("1: a", "no recipe"),
        ("null: a", "no recipe"),
        ("# nothing", "no recipe"),
    ],
    ids=short,
)
def test_what_is_refused(text, words):
    with pytest.raises(ZooError, match=words):
        parse(text, "x")


def test_depth():
    def nested(levels):
        return "{a: " * levels + "1" + "}" * levels

    assert parse(nested(strict_yaml.DEEPEST - 1), "x")
    for text in (
        nested(strict_yaml.DEEPEST),
        "[" * 60_000,
        "{" * 60_000,
        "? " * 30_000,
        "- " * 30_000,
        "{a: " * 15_000,
    ):
        with pytest.raises(ZooError, match="line 1: a recipe is nested at most 8 deep"):
            parse(text, "x")


def test_size(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("a: " + "b" * (strict_yaml.LARGEST - 3))
    assert len(read(file)["a"]) == strict_yaml.LARGEST - 3
    for text in (
        "a: " + "b" * (strict_yaml.LARGEST - 2),
        "a: " + "\u00e9" * (strict_yaml.LARGEST // 2),
    ):  # bytes, however many letters they are
        file.write_text(text, encoding="utf-8")
        assert "larger than 64 KiB" in sentence(lambda: read(file))
    with open(file, "wb") as huge:
        huge.truncate(1 << 28)
    tracemalloc.start()
    assert "larger than 64 KiB" in sentence(lambda: read(file))
    assert tracemalloc.get_traced_memory()[1] < 4_000_000, "a file that is too large was read whole"
    tracemalloc.stop()


@pytest.mark.parametrize(
    "word",
    [
        "0" * 60_000 + "e",
        "1." * 30_000,
        "-" * 60_000,
        "1e" * 30_000,
        "'" + "''" * 30_000 + "'",
        "." * 60_000,
        "0." + "0" * 60_000 + "e",
    ],
    ids=short,
)
def test_no_word_takes_minutes(word):
    with no_hang(), contextlib.suppress(ZooError):
        assert isinstance(parse(f"key: {word}", "x"), dict)
    with no_hang(), contextlib.suppress(ZooError):
        change(optim__lr=word, data__size=word)


def test_files(tmp_path):
    assert read(NAMES[0]) == read(f"{NAMES[0]}.yaml") == read(find(NAMES[0])) == parse(TEXTS[0], "x")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    assert "bytes.yaml can't be read as a recipe" in sentence(lambda: read(tmp_path / "bytes.yaml"))
    assert "is a folder; a recipe is a YAML file" in sentence(lambda: read(tmp_path))
    assert "did you mean simclr-resnet10t-fashion-mnist" in sentence(lambda: read("simclr-resnet10t-fashion"))
    assert "neither as a file nor among those that came with the zoo" in sentence(lambda: read(tmp_path / "none.yaml"))
    assert "File name too long" in sentence(lambda: read(TEXTS[0] * 20))  # the text where a name belongs
    assert "'a\\x00b' has a null character" in sentence(lambda: read("a\0b"))


# ---- the command line's words --------------------------------------------------------------------


def test_overrides():
    words = [
        "--task.temperature",
        "0.1",
        "--optim.lr=1e-3",
        "--backbone.channels",
        "[8, 16]",
        "--backbone.stem_width=16",
        "--backbone.act_layer",
        "no",
        "--backbone.name",
        "123",
        "--data.name=folder:/a=b",
        "--seed",
        "-1",
    ]
    assert overrides(words) == {
        "task.temperature": "0.1",
        "optim.lr": "1e-3",
        "backbone.channels": [8, 16],
        "backbone.stem_width": 16,
        "backbone.act_layer": "no",
        "backbone.name": "123",
        "data.name": "folder:/a=b",
        "seed": "-1",
    }
    resolved = resolve(BASE, overrides(words))
    assert resolved["task"]["temperature"] == 0.1 and resolved["optim"]["lr"] == 1e-3 and resolved["seed"] == -1
    assert resolved["backbone"] == {"name": "123", "channels": [8, 16], "stem_width": 16, "act_layer": "no"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.lr", "1"], "'task.lr' is not an option; recipe keys are written --group.key VALUE"),
        (["-x", "1"], "is not an option"),
        (["--optim.lr"], "--optim.lr lacks its value"),
        (["--optim.lr=1", "--optim.lr", "2"], "--optim.lr is given twice"),
        (["--task.sizes=[1, 2"], "--task.sizes is not valid YAML"),
        (["--backbone.x=*a"], "--backbone.x, line 1: .*aliases"),
        (["--backbone.x", "!!python/name:os.system"], "YAML tags"),
    ],
)
def test_overrides_that_are_refused(words, said):
    with pytest.raises(ZooError, match=said):
        overrides(words)


# ---- checking ------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("task.temprature", 0.1, "task.temprature is not a key of this recipe; did you mean task.temperature"),
        ("optm.lr", 0.1, "optm.lr is not a key of this recipe; did you mean optim.lr"),
        ("foo", 1, "foo is not a key of this recipe; known: "),
        ("task.backbone", "x", "task.backbone is not a key of this recipe"),
        ("foo", {}, "foo is not a key"),
        ("seed.x", 1, "seed.x is not a key"),
        ("optim.lr+", 1, "is not a key"),
        ("", 1, "is not a key"),
        ("backbone.", 1, "backbone. is not a key"),
        ("backbone.a b", 1, "is not a key"),
        ("backbone.x.y", 1, "backbone.x.y is not a key"),
        ("optim.name", 32, "^optim.name is 32, but has to be one of the words"),
        ("optim", 3, "optim is not a key"),
        ("task", "mae", "task is not a key"),
        # types
        ("trainer.max_steps", "many", "trainer.max_steps is many, but has to be int$"),
        ("trainer.max_steps", 1.5, "is 1.5, but has to be int$"),
        ("trainer.max_steps", True, "trainer.max_steps is True, but has to be int$"),
        ("trainer.max_steps", [1], "is .1., but has to be int$"),
        ("trainer.max_steps", "null", "trainer.max_steps is None, but has to be int$"),
        ("optim.lr", True, "optim.lr is True, but has to be float$"),
        ("optim.lr", "", "optim.lr is empty, but has to be float$"),
        ("data.name", 123, "data.name is 123, but has to be str$"),
        ("backbone.name", 3, "backbone.name is 3, but has to be str$"),
        ("trainer.channels_last", 1, "trainer.channels_last is 1, but has to be bool$"),
        ("data.size", "big", "^data.size is big, but has to be int or list"),
        ("optim.name", "adam", "^optim.name is adam, but has to be one of the words 'adamw', 'sgd', 'lars'$"),
        # nothing, and no numbers
        ("optim.lr", None, "optim.lr can't be empty"),
        ("seed", None, "seed can't be empty"),
        ("backbone.channels", [1, None], "backbone.channels can't be empty"),
        ("optim.lr", NAN, "optim.lr is nan; it has to be a finite number"),
        ("optim.lr", -INF, "optim.lr is -inf; it has to be a finite number"),
        ("optim.lr", ".inf", "optim.lr is inf; it has to be a finite number"),
        ("optim.lr", "1e999", "optim.lr is inf"),
        ("optim.lr", "nan", "optim.lr is nan"),
        ("backbone.x", INF, "backbone.x is inf"),
        ("backbone.x", [1.0, [NAN]], "backbone.x is nan"),
        ("seed", 2**63, "seed is a number of 64 bits; it has to fit into 64 with its sign"),
        ("seed", "9" * 30, "seed is a number of 100 bits"),
        ("seed", "9" * 5000, "seed"),
        ("optim.lr", 10**400, "optim.lr is a number of 1329 bits"),
        ("backbone.x", [10**30], "backbone.x is a number of 100 bits"),
        # kinds of value
        ("backbone.x", ..., "backbone.x holds a ellipsis"),
        ("backbone.x", {"a": 1}, "backbone.x holds a mapping"),
        ("task.layers", {"a": 1}, "task.layers holds a mapping"),
        ("backbone.x", [{"a": 1}], "backbone.x holds a mapping"),
        ("data.name", Path("x"), "data.name holds a PosixPath; use numbers, words or lists of them"),
        # what is nobody's business, and what nothing is called
        *(
            (
                f"backbone.{key}",
                "xyzzy",
                f"^backbone.{key} looks like a secret, and a recipe is kept and published with its checkpoint; leave "
                "it out$",
            )
            for key in ("token", "hub_token", "api_key", "apikey", "password", "PassWd", "client_secret", "credentials")
        ),
        ("backbone.token", 3, "looks like a secret"),
        ("backbone.token", ["xyzzy"], "looks like a secret"),
        (
            "data.name",
            "folder:\ud800",
            r"^data.name holds half a character \('folder:\\ud800'\), which nothing can be called$",
        ),
        ("backbone.x", ["a", "\udfff"], "backbone.x holds half a character"),
        # the task
        ("task.name", "simclrr", "'simclrr' is not a task; did you mean simclr?"),
        ("task.name", None, "names no task; .*zoo list tasks"),
        ("task.name", 3, "names no task"),
    ],
    ids=short,
)
def test_one_sentence_for(key, value, said):
    with pytest.raises(ZooError, match=said):
        resolve(BASE, {key: value})
    sentence(lambda: resolve(BASE, {key: value}))


def test_what_only_sounds_like_a_secret():
    for key, value in (("class_token", False), ("reg_tokens", 4), ("keys", [1]), ("tokens", "a")):
        assert resolve(BASE, {f"backbone.{key}": value})["backbone"][key] == value
    assert resolve(BASE, {"data.name": "folder:\udcff\u00fc"})["data"]["name"] == "folder:\udcff\u00fc", (
        "bytes that aren't UTF-8 may name a file"
    )


def test_a_number_too_long_to_be_written():
    assert sentence(lambda: change(seed=10**5000)).startswith("seed is a number of 16610 bits")


def test_what_is_missing():
    assert sentence(lambda: resolve({})).startswith("the recipe names no task")
    assert sentence(lambda: resolve({"task": {}})).startswith("the recipe names no task")
    assert (
        sentence(lambda: resolve({"task": {"name": "simclr"}, "data": {"name": "digits"}}))
        == "the recipe lacks backbone.name"
    )
    assert "data.name" in sentence(lambda: resolve({"task": {"name": "simclr"}, "backbone": {"name": "test_resnet"}}))


def test_an_empty_group_says_nothing_and_an_empty_mapping_elsewhere_is_refused():
    assert (
        resolve({**BASE, "optim": {}})
        == resolve({**BASE}, {"optim": {}})
        == resolve({**BASE, **parse("optim:", "x")})
        == resolve(BASE)
    )
    assert sentence(lambda: resolve({**BASE, "backbone": None})) == "the recipe lacks backbone.name"
    assert sentence(lambda: resolve({**BASE, "optin": {}})).startswith(
        "optin is not a key of this recipe; did you mean optim"
    )
    assert sentence(lambda: resolve({**BASE, "task": {"name": "simclr", "layers": {}}})).startswith(
        "task.layers holds a mapping"
    )
    assert sentence(lambda: resolve({**BASE, "backbone": {"name": "test_resnet", "depths": {}}})).startswith(
        "backbone.depths holds a mapping"
    )


def test_a_key_in_two_places():
    twice = {**BASE, "task.temperature": 0.1, "task": {"name": "simclr", "temperature": 0.2}}
    assert sentence(lambda: resolve(twice)) == "task.temperature is given twice"
    assert resolve({**BASE, "optim.lr": 0.5})["optim"]["lr"] == 0.5
    assert (
        resolve({**BASE, "optim": {"lr": 0.5}}, {"optim.lr": 0.25})["optim"]["lr"] == 0.25
    )  # a change takes the recipe's place


def test_words_of_the_command_line_have_the_type_of_their_key():
    resolved = change(
        trainer__max_steps="20",
        trainer__channels_last="true",
        trainer__precision="32",
        optim__lr="1e-2",
        data__size="null",
        data__name="8",
    )
    assert resolved["trainer"] | {"max_steps": 20, "channels_last": True, "precision": "32"} == resolved["trainer"]
    assert resolved["optim"]["lr"] == 0.01 and resolved["data"]["size"] is None and resolved["data"]["name"] == "8"
    assert resolve({**BASE, "trainer": {"precision": 32, "max_steps": 1}})["trainer"]["precision"] == "32"
    assert change(trainer__channels_last="no")["trainer"]["channels_last"] is False


def test_keywords_of_timm_pass_through_as_they_are():
    given = {"name": "x", "channels": [32, [64, 128]], "act_layer": "no", "stem": 1e-3, "pool": True, "depth": 3}
    assert resolve({**BASE, "backbone": given})["backbone"] == given


@pytest.mark.parametrize("name", NAMES)
def test_resolving_is_a_fixed_point_and_a_saved_recipe_reads_back_equal(name, tmp_path):
    resolved = resolve(read(name))
    assert list(resolved) == list(recipes.ORDER) and all(
        next(iter(resolved[group])) == "name" for group in ("data", "backbone", "task", "optim")
    )
    saved = read(save(resolved, tmp_path / "saved.yaml"))
    assert saved == resolved == resolve(resolved) == resolve(saved)
    assert list(flat(saved)) == list(flat(resolved))
    for group, signature in groups().items():  # every default is written out
        assert set(resolved[group]) == set(inspect.signature(signature).parameters)


def test_words_that_look_like_something_else_are_saved_as_words(tmp_path):
    given = {"name": "x", "words": ["1e3", "no", "~", "", "2024-01-01", "010", "<<", "*a", "line\x85line", "gr\u00fcn"]}
    saved = read(save(resolve({**BASE, "backbone": given}), tmp_path / "saved.yaml"))
    assert saved["backbone"] == given
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["backbone"] == given  # whoever reads it


def test_lists_of_a_task(probe):  # noqa: F811
    def init(
        self,
        backbone,
        sizes: list[int] = [1, 2],
        scale: tuple[float, float] = (0.5, 1.0),
        some: list[str] | None = None,
    ):
        pass

    probe(init)
    recipe = {**BASE, "task": {"name": "probe"}}
    assert resolve(recipe)["task"] == {"name": "probe", "sizes": [1, 2], "scale": [0.5, 1.0], "some": None}
    resolved = resolve(recipe, overrides(["--task.sizes", "[3]", "--task.scale=[1, 2]", "--task.some=[no, '1']"]))
    assert (
        resolved["task"] == {"name": "probe", "sizes": [3], "scale": [1.0, 2.0], "some": ["no", "1"]}
        and resolve(resolved) == resolved
    )
    assert sentence(lambda: resolve(recipe, {"task.sizes": ["a"]})) == "task.sizes is a, but has to be int"
    assert (
        sentence(lambda: resolve(recipe, {"task.scale": [1.0, INF]}))
        == "task.scale is inf; it has to be a finite number"
    )
    assert sentence(lambda: resolve(recipe, {"task.sizes": [10**30]})).startswith("task.sizes is a number of 100 bits")
    assert sentence(lambda: resolve(recipe, {"task.sizes": [None]})) == "task.sizes can't be empty"


# ---- what a recipe may say: --help ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_exactly_the_keys_of_the_recipe(name, capsys):
    values = dict(flat(read(name)))
    rows = {row["key"]: row for row in keys(values)}
    signatures = {"task": registry.find_task(values["task.name"]).__init__, **groups()}
    arguments = {
        f"{group}.{key}": parameter
        for group, signature in signatures.items()
        for key, parameter in inspect.signature(signature).parameters.items()
        if key not in ("self", "backbone")
    }
    assert rows.keys() == {
        "seed",
        "backbone.name",
        "task.name",
        *arguments,
        *(key for key in values if key.startswith("backbone.")),
    }
    for key, parameter in arguments.items():
        required = parameter.default is parameter.empty
        assert (
            rows[key]["required"] == required
            and (required or rows[key]["default"] == parameter.default)
            and rows[key]["type"]
        ), key
    assert [key for key, row in rows.items() if not row["about"]] == []
    assert {key: rows[key]["value"] for key in values} == values

    assert cli.main(["pretrain", name, "--help", "--optim.lr", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  --")] == [
        *(f"--{key}" for key in rows),
        "--backbone.KEYWORD",
    ]
    for line in (
        "--optim.lr float [0.001; here 0.5]",
        "--trainer.precision 32|bf16 [32",
        "--data.size int or list[int] or null [null",
        "--data.name str [required",
    ):
        assert line in printed


def test_a_keyword_of_the_recipes_backbone_can_be_taken_out():
    """For another backbone, which doesn't know it."""
    values = {
        "data": {"name": "digits"},
        "backbone": {"name": "test_resnet", "output_stride": 8},
        "task": {"name": "simclr"},
        "trainer": {"max_steps": 1},
    }
    changes = overrides(
        ["--backbone.name", "vit_tiny_patch16_224", "--backbone.output_stride", "null", "--backbone.patch_size", "8"]
    )
    assert resolve(values, changes)["backbone"] == {"name": "vit_tiny_patch16_224", "patch_size": 8}
    assert resolve(values, {"backbone.depth": None})["backbone"] == values["backbone"], (
        "what isn't there can be taken out too"
    )
