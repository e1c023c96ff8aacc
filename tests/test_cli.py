"""The command line: what the verbs print, with which exit code they end, and what they say to whoever errs."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from run_example import hub, place, recipe_file, refused, trained, zoo_says  # noqa: F401

import zoo
from zoo import cli, registry
from zoo.card import read_card
from zoo.checkpoint.write import update_card
from zoo.errors import ZooError
from zoo.evaluate.finetune import FineTuning

VERBS = list(cli.build_parser()[1])
SHIPPED = "simclr-test-resnet-fashion-mnist"


# ---- what verbs print ----------------------------------------------------------------------------

JSON = {
    "list": [
        ["list"],
        ["list", "tasks"],
        ["list", "backbones", "resnet1?"],
        ["list", "data"],
        ["list", "recipes"],
        ["list", "checkpoints", "--hub", "{hub}"],
        ["list", "tasks", "nothing-like-it"],
    ],
    "info": [
        ["info", "mae"],
        ["info", SHIPPED],
        ["info", "digits"],
        ["info", "resnet18"],
        ["info", "{run}"],
        ["info", "small", "--hub", "{hub}"],
    ],
    "data": [["data", "list"], ["data", "get", "digits"]],
    "quickstart": [["quickstart"]],
    "pretrain": [["pretrain", SHIPPED, "--help"], ["pretrain", SHIPPED, "--smoke", "--no-progress"]],
    "adapt": [
        ["adapt", "{run}", "--data", "digits", "--mode", "knn", "--per-class", "3"],
        ["adapt", "{run}", "--data", "digits", "--labels", "0.01"],
        ["adapt", "{run}", "--data", "digits", "--mode", "knn", "--labels", "5"],
    ],
    "evaluate": [["evaluate", "small", "--hub", "{hub}", "--protocols", "knn", "--labels", "3"]],
    "reproduce": [["reproduce", "{run}"]],
    "report": [["report", "{run}"]],
    "import": [["import", "{run}/checkpoint/model.safetensors", "--backbone", "test_resnet", "--out", "imported"]],
    "export": [["export", "{run}"], ["export", "small", "--hub", "{hub}", "--out", "other.pt2"]],
    "pull": [["pull", "small", "--hub", "{hub}"]],
    "push": [["push", "{run}", "--to", "another", "--name", "renamed"]],
    "verify": [["verify"], ["verify", "{hub}"], ["verify", "{run}"]],
    "new-task": [["new-task", "my-task"]],
    "completion": [["completion", "bash"], ["completion", "zsh"], ["completion", "tcsh"]],
}


def test_every_verb_is_tried():
    assert list(JSON) == VERBS


@pytest.mark.parametrize("words", [words for many in JSON.values() for words in many], ids=" ".join)
def test_json_and_nothing_else(words, zoo_says, monkeypatch):
    monkeypatch.setattr("zoo.quickstart.quickstart", lambda **given: print("a table") or {"data": "digits"})
    code, out, error = zoo_says(*words, "--json")
    assert code == 0, error
    value = json.loads(out)
    assert out.count("\n") == 1 and isinstance(value, (dict, list))
    if words[-1] != "nothing-like-it" and words != ["verify"]:
        assert value
    code, out, _ = zoo_says(*(word.replace("my-task", "other-task") for word in words), *_elsewhere(words))
    assert code == 0 and out and not out.startswith("{"), "for people it isn't JSON"


def _elsewhere(words: list[str]) -> list[str]:
    """What a verb that writes needs to be called a second time."""
    needed = {
        "pretrain": ["--out", "second"],
        "import": ["--out", "second"],
        "export": ["--out", "second.pt2"],
        "push": ["--replace"],
    }
    return needed.get(words[0], []) + (["--out", "second"] if "0.01" in words else [])


def test_what_a_library_prints_is_kept_apart_from_json(zoo_says, monkeypatch):
    def noisy(target):
        print("a library says hello")
        return []

    monkeypatch.setattr("zoo.hub.hub.verify", noisy)
    assert zoo_says("verify", "--json") == (0, '{"problems": []}\n', "a library says hello\n")


def test_listing_by_pattern(zoo_says):
    _, out, _ = zoo_says("list", "tasks", "sim*")
    assert "simclr" in out and "mae" not in out and "Two random views" in out
    _, out, _ = zoo_says("list", "tasks", "nothing-like-it")
    assert out == "  none\n"
    _, out, _ = zoo_says("list", "--hub", "{hub}")
    assert all(f"{kind}:\n" in out for kind in ("tasks", "data", "recipes", "checkpoints")) and "backbones:" not in out
    assert {SHIPPED, "simclr", "digits", "small"} <= set(out.split())
    names = {row["name"] for row in json.loads(zoo_says("list", "backbones", "vit_tiny*", "--json")[1])}
    assert "vit_tiny_patch16_224" in names and all(name.startswith("vit_tiny") for name in names)


def test_listing_goes_on_without_a_hub(zoo_says):
    code, out, err = zoo_says("list", "--hub", "nowhere", "--json")
    value = json.loads(out)
    assert (
        code == 0
        and value["checkpoints"] == []
        and value["tasks"]
        and err.startswith("zoo: nowhere is not a hub")
        and err.count("\n") == 1
    )


def test_a_broken_plugin_is_marked(zoo_says, monkeypatch):
    entry = registry.TaskEntry(
        "odd", "odd:Odd", "odd-package 1.0", "Of use to nobody.", problem="odd-package 1.0 has no package 'odd'"
    )
    monkeypatch.setattr(registry, "_installed", lambda: [entry])
    line = next(line for line in zoo_says("list", "tasks")[1].splitlines() if line.split()[0] == "odd")
    assert "odd-package 1.0" in line and "BROKEN: odd-package 1.0 has no package 'odd'" in line


def test_info_of_each_kind(zoo_says, trained):
    def info(*words: str) -> dict:
        return json.loads(zoo_says("info", *words, "--json")[1])

    task = info("mae")
    assert (
        task["kind"] == "task"
        and task["from"] == "zoo"
        and task["arguments"]["mask_ratio"] == "0.75"
        and task["needs"] == ["image"]
    )
    recipe = info(SHIPPED)
    assert recipe["kind"] == "recipe" and recipe["task"]["name"] == "simclr" and Path(recipe["file"]).is_file()
    assert info("simclr-resnet10t-fashion-mnist")["checkpoint"]["metrics"], "what came of it has its name"
    data = info("digits")
    assert data["kind"] == "data" and data["license"] == "CC-BY-4.0" and data["splits"]["train"] == 1258
    backbone = info("resnet18")
    assert (backbone["kind"], backbone["from"], backbone["problem"]) == ("backbone", "timm", None)
    card = read_card(trained / "checkpoint")
    assert info("{run}") == info("{run}/checkpoint") == {"kind": "checkpoint"} | json.loads(json.dumps(card))
    entry = info("small", "--hub", "{hub}")
    assert (
        entry["kind"] == "checkpoint" and entry["parameters"] == card["parameters"] and entry["license"] == "Apache-2.0"
    )
    told = zoo_says("info", "mae")[1]
    assert (
        "mask_ratio" in told
        and "\n    visible patches --> backbone --> " in told
        and "\nDiffers: " in told
        and "arxiv.org/abs/2111.06377" in told
    )


def test_getting_data_that_comes_with_a_library(zoo_says):
    code, out, _ = zoo_says("data", "get", "digits")
    assert (
        code == 0 and Path(out.strip()).is_dir() and any("digits" in path.name for path in Path(out.strip()).iterdir())
    )


def test_the_version(zoo_says):
    assert zoo_says("--version") == (0, f"{zoo.__version__}\n", "")


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["-h"], ["pretrain", "--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join
)
def test_help(words, zoo_says):
    code, out, err = zoo_says(*words)
    assert (code, err) == (0, "") and out.startswith("usage: zoo") and "--help" in out
    if len(words) < 2:
        assert all(f"\n    {verb}" in out for verb in VERBS)
    else:
        assert "--json" in out and words[0] in out.split("\n")[0]


IMPORTS = """
import contextlib, io, json, sys
from zoo.cli import main

commands = json.loads(sys.argv[1])
heavy = lambda: [name for name in ("torch", "timm", "lightning", "numpy", "sklearn") if name in sys.modules]
found = {}
with contextlib.redirect_stdout(io.StringIO()):
    for words in commands:
        code = main(words)
        found[" ".join(words)] = [code, heavy()]
print(json.dumps(found))
"""


def test_listing_and_helping_import_nothing_heavy(place):
    """The help of a recipe and the refusal of a wrong one neither, whichever task of the zoo it names."""
    commands = [
        ["list"],
        ["list", "tasks", "sim*"],
        ["list", "backbones"],
        ["info", "simclr"],
        ["info", SHIPPED],
        ["info", "digits"],
        ["info", "resnet18"],
        ["--help"],
        *([verb, "--help"] for verb in VERBS),
        ["completion", "bash"],
        ["completion", "zsh"],
        ["data", "list"],
        ["pretrain", "--help"],
        ["pretrain", SHIPPED, "--help"],
        ["pretrain", SHIPPED, "--help", "--task.name", "mae"],
        ["pretrain", "nothing-like-it"],
        ["pretrain", SHIPPED, "--task.blurr", "1"],
        ["pretrain", SHIPPED, "--trainer.max_steps", "x"],
        ["new-task", "my-task"],
        ["--version"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(commands)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(zoo.__file__).parents[1])},
    )
    assert json.loads(done.stdout) == {
        " ".join(words): [2 if words[-1] in ("nothing-like-it", "1", "x") else 0, []] for words in commands
    }


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_what_an_adapted_checkpoint_is_compared_with(mode, zoo_says, monkeypatch):
    """In the text as in the JSON; and left out where nobody wants to wait for it."""
    for name in ("zoo.adapt", "zoo.evaluate.protocols"):
        monkeypatch.setattr(importlib.import_module(name), "tuning_for", lambda task, seed: FineTuning(steps=3))
    words = ["adapt", "{run}", "--data", "digits", "--per-class", "3", "--mode", mode, "--out"]
    first, *lines = zoo_says(*words, "a")[1].splitlines()
    found = json.loads(zoo_says(*words, "b", "--json")[1])
    assert (
        first == f"{mode} on digits ({found['images']:,} labels, 3 per class): {found['value']:.1f} % on test; the "
        "classifier is a"
    )
    assert list(found["baselines"]) == ["random weights", "pixels"]
    names = ["random weights", "pixels" if mode == "probe" else "pixels (linear probe)"]
    assert [line.split(maxsplit=0)[0].rsplit(maxsplit=2) for line in lines] == [
        [name, f"{value:.1f}", "%"] for name, value in zip(names, found["baselines"].values(), strict=True)
    ]
    assert json.loads(zoo_says(*words, "c", "--json", "--no-baselines")[1])["baselines"] == {}
    rows = json.loads(
        zoo_says("evaluate", "{run}", "--protocols", "knn", "--labels", "3", "--no-baselines", "--json")[1]
    )
    assert [row["features"] for row in rows] == ["backbone", "code"]


# ---- recipes on the command line -----------------------------------------------------------------


def test_the_help_of_a_recipe_is_exact(zoo_says):
    keys = {
        row["key"]: row
        for row in json.loads(zoo_says("pretrain", SHIPPED, "--help", "--task.blur", "0.25", "--json")[1])["keys"]
    }
    wanted = list(registry.task_arguments("simclr"))
    assert [key for key in keys if key.startswith("task.")] == ["task.name", *(f"task.{name}" for name in wanted)]
    assert (
        keys["task.blur"]["value"] == "0.25"
        and keys["task.temperature"]["default"] == 0.2
        and keys["task.temperature"]["about"]
    )
    groups = {"seed", "data", "backbone", "task", "optim", "trainer"}
    assert {key.split(".")[0] for key in keys} == groups and keys["backbone.output_stride"]["value"] == 8
    _, out, _ = zoo_says("pretrain", SHIPPED, "--help")
    assert all(f"  --{key} " in out for key in keys) and "[0.2; here 0.3]" in out
    other = {
        row["key"]
        for row in json.loads(zoo_says("pretrain", SHIPPED, "--help", "--task.name", "vae", "--json")[1])["keys"]
    }
    assert "task.temperature" not in {key for key in other if key not in keys} and "task.code" in other


def test_keys_on_the_command_line(zoo_says):
    words = [
        "--task.code",
        "4",
        "--trainer.max_epochs",
        "2",
        "--trainer.max_steps",
        "99",
        "--seed",
        "3",
        "--optim.lr=5e-4",
        "--data.batch_size=256",
    ]
    code, out, err = zoo_says("pretrain", recipe_file(), *words, "--no-progress", "--json")
    run = Path("runs/small-s3")
    assert code == 0 and json.loads(out) == {"run": str(run), "checkpoint": str(run / "checkpoint")} and err == ""
    saved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (saved["seed"], saved["task"]["code"], saved["optim"]["lr"], saved["trainer"]["max_epochs"]) == (
        3,
        4,
        5e-4,
        2,
    )
    card = read_card(run / "checkpoint")
    assert (
        card["task"] == saved["task"]
        and saved["task"]["width"] == 8
        and card["seed"] == 3
        and card["steps"] == 2 * (1258 // 256)
    )


def test_smoke_leaves_the_name_of_the_run_free(zoo_says):
    file = recipe_file()
    assert zoo_says("pretrain", file, "--smoke", "--no-progress")[:2] == (
        0,
        "runs/small-s0-smoke/checkpoint is the checkpoint; see what it is worth with:  zoo evaluate "
        "runs/small-s0-smoke\n",
    )
    assert (
        zoo_says("pretrain", file, "--no-progress", "--logger", "none")[0] == 0
        and Path("runs/small-s0/checkpoint/zoo.json").is_file()
    )


# ---- completion ----------------------------------------------------------------------------------


def _completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    line = (
        f'source {script}; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _shtab_zoo; printf "%s\\n" '
        f'"${{COMPREPLY[@]}}"'
    )
    return set(subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True).stdout.split())


def test_completion_in_bash(zoo_says):
    script = Path("zoo.bash")
    script.write_text(zoo_says("completion", "bash")[1])
    subprocess.run(["bash", "-n", script], check=True)
    assert _completed(script, "zoo", "re") == {"reproduce", "report"} and _completed(script, "zoo", '""') >= set(VERBS)
    assert _completed(script, "zoo", "list", "ta") == {"tasks"} and _completed(script, "zoo", "adapt", "--mo") == {
        "--mode"
    }
    (Path.cwd() / "some.yaml").touch()
    assert "some.yaml" in _completed(script, "zoo", "pretrain", "so")


def test_completion_in_zsh(zoo_says):
    script = Path("_zoo")
    script.write_text(zoo_says("completion", "zsh")[1])
    text = script.read_text()
    assert text.startswith("#compdef zoo") and all(
        f"    {verb}:'" in text and f"        {verb}) _arguments" in text for verb in VERBS
    )
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", script], check=True)


# ---- exit codes ----------------------------------------------------------------------------------


def test_what_does_not_verify_ends_with_1(zoo_says, hub, tmp_path):
    damaged = shutil.copytree(hub, tmp_path / "damaged")
    (damaged / "small" / "model.safetensors").write_bytes(b"something else")
    code, out, err = zoo_says("verify", damaged)
    assert (code, err) == (1, "") and "model.safetensors" in out and out.count("\n") == 1
    code, out, _ = zoo_says("verify", damaged, "--json")
    assert code == 1 and len(json.loads(out)["problems"]) == 1


def test_what_does_not_reproduce_ends_with_1(zoo_says, trained, tmp_path):
    changed = shutil.copytree(trained / "checkpoint", tmp_path / "changed")
    metric = read_card(changed)["metrics"][0]
    update_card(changed, metrics=[metric | {"value": metric["value"] - 3.0}])
    code, out, err = zoo_says("reproduce", changed)
    lines = out.splitlines()
    assert (
        (code, err) == (1, "")
        and lines[0].startswith("check:")
        and lines[0].endswith("holds")
        and lines[1].endswith(": DOES NOT HOLD")
    )
    assert zoo_says("reproduce", trained)[0] == 0
    rows = json.loads(zoo_says("reproduce", changed, "--json")[1])
    assert [row["holds"] for row in rows] == [True, False]


def test_a_defect_of_ours_is_not_hidden(zoo_says, monkeypatch):
    monkeypatch.setattr("zoo.hub.hub.verify", lambda target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zoo_says("verify")


def test_a_sentence_stays_on_one_line(refused, monkeypatch):
    def fail(target):
        raise ZooError("a file called two\nlines is odd")

    monkeypatch.setattr("zoo.hub.hub.verify", fail)
    assert refused("verify") == "a file called two lines is odd"


def test_a_reader_who_goes_away():
    """zoo list | head: no complaint, also where all of it was still in the buffer."""
    for words in (["list", "tasks"], ["list", "backbones"], ["--help"], ["verify", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "zoo.cli", *words],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=_environment(),
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b""), words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_standard_output_that_is_full():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "zoo.cli", "list", "tasks"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            check=False,
        )
    assert done.returncode == 2 and re.fullmatch("zoo: .* can't be .*: No space left on device\n", done.stderr)


def test_a_name_that_the_terminal_has_no_letters_for(place):
    """As bytes that aren't UTF-8, or where the terminal speaks ASCII alone."""
    name = os.fsdecode("\u00fc".encode() + b"\xff")
    os.mkdir(name)
    for words in (["data", "shard", name, "--out", name], ["data", "shard", name, "--out", name, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "zoo.cli", *words],
            capture_output=True,
            env=_environment() | {"PYTHONIOENCODING": "ascii:strict"},
            check=False,
        )
        assert (
            done.returncode == 2
            and done.stderr.startswith(b"zoo: ")
            and done.stderr.isascii()
            and done.stderr.count(b"\n") == 1
        )
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli", "new-task", "mine", "--out", name + "/new", "--json"],
        capture_output=True,
        check=False,
        env=_environment() | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert json.loads(done.stdout) == {"folder": name + "/new"}


def test_a_command_that_is_printed_can_be_typed(zoo_says):
    _, out, _ = zoo_says("new-task", "mine", "--out", "a b")
    assert "pip install -e 'a b'\n  pytest 'a b'" in out
    _, out, _ = zoo_says("pretrain", recipe_file(), "--trainer.max_steps", "2", "--out", "my run", "--no-progress")
    assert "zoo evaluate 'my run'" in out


def _environment() -> dict[str, str]:
    """Of a process that finds this zoo."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
        "PYTHONPATH": str(Path(zoo.__file__).parents[1])
    }


# ---- signals -------------------------------------------------------------------------------------

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
SAVED = (
    r"zoo: {name} received: the state of step [0-9,]+ is saved in run/last\.ckpt; add --resume to go on with the run\n"
)


@pytest.fixture
def ours():
    """Handlers of the caller's, which have to be there again afterwards; and which make a late signal harmless."""
    got: list[int] = []

    def handler(number, frame):
        got.append(number)

    before = {number: signal.signal(number, handler) for number, _ in SIGNALS}
    yield handler
    for number, old in before.items():
        signal.signal(number, old)
    assert not got, "a signal came when the command had ended"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_training(number, code, ours, zoo_says, place):
    file = recipe_file(trainer={"max_steps": 10**6, "save_every": 2})

    def send():
        until = time.monotonic() + 120
        while not (place / "run/last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.02)
        if time.monotonic() < until:
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    got = zoo_says("pretrain", file, "--out", "run", "--no-progress")
    sender.join()
    assert got[:2] == (code, "") and re.fullmatch(SAVED.format(name=number.name), got[2])
    assert all(signal.getsignal(other) is ours for other, _ in SIGNALS)


def test_a_signal_to_a_process(place):
    """The same from outside, all the way to the exit code, and with nothing on standard error that isn't ours."""
    file = recipe_file(trainer={"max_steps": 10**6, "save_every": 2})
    environment = os.environ | {"PYTHONPATH": str(Path(zoo.__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-m", "zoo.cli", "pretrain", file, "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        until = time.monotonic() + 240
        while child.poll() is None and not Path("run/last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=120)
    finally:
        child.kill()
    assert (child.returncode, out) == (143, "") and re.fullmatch(SAVED.format(name="SIGTERM"), err)


def test_an_impatient_caller(ours, monkeypatch, zoo_says):
    """The second signal ends the process at once."""
    ended = []

    def stubborn(target):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr("zoo.hub.hub.verify", stubborn)
    monkeypatch.setattr(os, "_exit", lambda code: ended.append(code))
    assert zoo_says("verify")[0] == 143 and ended == [128 + signal.SIGINT]


def test_in_a_thread_there_are_no_signals(ours, zoo_says):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["verify"])))
    thread.start()
    thread.join()
    assert codes == [0] and signal.getsignal(signal.SIGTERM) is ours


def test_handlers_are_put_back_after_an_error(ours, refused):
    refused("lst")
    assert all(signal.getsignal(number) is ours for number, _ in SIGNALS)
