"""What a person gets to read who errs: one sentence on standard error, exit code 2, and nothing else."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from run_example import hub, place, recipe_file, refused, trained, zoo_says  # noqa: F401

import zoo
from zoo import registry
from zoo.backbones import Backbone
from zoo.registry import register_task
from zoo.tasks.base import PretextTask

SHIPPED = "simclr-test-resnet-fashion-mnist"

ERRORS = [
    (["lst"], "'lst' is not a verb of zoo; did you mean list?"),
    (["list", "--chek"], "zoo list doesn't take --chek; did you mean --check"),
    (["list", "-x"], "zoo list doesn't take -x; did you mean -h?"),
    (["--vershun"], "zoo doesn't take --vershun; did you mean --version?"),
    (["list", "taks"], "zoo list doesn't know 'taks'; did you mean tasks"),
    (["completion", "fish"], "zoo completion doesn't know 'fish'"),
    (["data", "got"], "zoo data doesn't know 'got'; did you mean get"),
    (
        ["adapt", "{run}", "--data", "digits", "--mode", "prob"],
        "zoo adapt doesn't know --mode 'prob'; did you mean probe?",
    ),
    (["pretrain", SHIPPED, "--logger", "wand"], "zoo pretrain doesn't know --logger 'wand'; did you mean wandb?"),
    (
        ["evaluate", "{run}", "--protocols", "knn", "liner"],
        "zoo evaluate doesn't know --protocols 'liner'; did you mean linear?",
    ),
    (
        ["pretrain", SHIPPED, "--smoky"],
        "zoo pretrain doesn't take --smoky (keys of a recipe are written --group.key); did you mean --smoke",
    ),
    (["pull"], "the following arguments are required: name; see zoo pull --help"),
    (["adapt", "{run}"], "the following arguments are required: --data; see zoo adapt --help"),
    (
        ["adapt", "{run}", "--data", "digits", "--labels", "few"],
        "--labels 'few' is neither a share such as 0.01 nor a number per class such as 5",
    ),
    (["adapt", "{run}", "--data", "digits", "--labels", "0"], "0 is no amount of labels"),
    (
        ["pretrain", SHIPPED, "--smoke", "--backbone.output_stride", "7"],
        "AssertionError: assert output_stride in \\(8, 16, 32\\)|AssertionError: .*output_stride",
    ),
    (
        ["pretrain", SHIPPED, "--smoke", "--backbone.name", "vit_tiny_patch16_224", "--backbone.patch_size", "7"],
        "take one of the recipe's out by --backbone.output_stride null",
    ),
    (["adapt", "{run}", "--data", "digits", "--labels", "0.5", "--per-class", "3"], "two ways to say how many labels"),
    (
        ["evaluate", "{run}", "--labels", "few"],
        "--labels 'few' is neither a share such as 0.01 nor a number per class such as 5",
    ),
    (["list", "recipes", "*", "more"], "unrecognized arguments: more"),
    (["list", "recipes", "--check"], "write:  zoo list tasks --check"),
    (["data", "get"], "zoo data get needs a name"),
    (["data", "get", "digit"], "there is no data set 'digit'; did you mean digits?"),
    (
        ["info", "simclrr"],
        "'simclrr' is neither a task, a recipe, a data set, a backbone nor a checkpoint; did you mean simclr?",
    ),
    (["pretrain"], "zoo pretrain needs a recipe; see zoo list recipes"),
    (
        ["pretrain", "simclr-test-resnet-fashion-mnits"],
        f"there is no recipe 'simclr-test-resnet-fashion-mnits'.*did you mean {SHIPPED}",
    ),
    (["pretrain", SHIPPED, "--seed"], "--seed lacks its value"),
    (
        ["pretrain", SHIPPED, "--task.temprature", "0.1"],
        "task.temprature is not a key of this recipe; did you mean task.temperature",
    ),
    (["pretrain", SHIPPED, "--optimm.lr", "0.1"], "optimm.lr is not a key of this recipe; did you mean optim.lr"),
    (["pretrain", SHIPPED, "--task.temperature", "warm"], "task.temperature is warm, but has to be float"),
    (["pretrain", SHIPPED, "--task.temperature", "0"], "task.temperature is 0.0; it has to be above 0"),
    (["pretrain", SHIPPED, "--trainer.precision", "16"], "trainer.precision is 16, but has to be one of the words"),
    (["pretrain", SHIPPED, "--seed", "1", "--seed", "2"], "--seed is given twice"),
    (["pretrain", SHIPPED, "--optim.lr", "nan"], "optim.lr is nan"),
    (["pretrain", SHIPPED, "--smoke", "--task.name", "simclrr"], "'simclrr' is not a task; did you mean simclr?"),
    (
        ["pretrain", SHIPPED, "--smoke", "--backbone.name", "test_resnt"],
        "'test_resnt' is not a backbone; did you mean test_resnet",
    ),
    (
        ["pretrain", SHIPPED, "--backbone.name", "test_resnt"],
        "'test_resnt' is not a backbone; did you mean test_resnet",
    ),
    (
        ["pretrain", SHIPPED, "--smoke", "--backbone.output_strid", "8"],
        "backbone.output_strid is not a keyword of timm's test_resnet",
    ),
    (
        ["pretrain", SHIPPED, "--smoke", "--data.name", "fashion-mnits"],
        "there is no data set 'fashion-mnits'; did you mean fashion-mnist?",
    ),
    (
        ["pretrain", SHIPPED, "--smoke", "--data.name", "/"],
        "'/' is a folder, not the name of a data set; write folder:/",
    ),
    (["pretrain", SHIPPED, "--data.name", "folder:nowhere"], "there is no folder .*nowhere"),
    (
        ["pretrain", SHIPPED, "--trainer.max_steps", "-1"],
        "doesn't say how long to train; set trainer.max_steps or trainer.max_epochs",
    ),
    (
        ["pretrain", SHIPPED, "--trainer.max_steps", "0", "--trainer.max_epochs", "1"],
        "trainer.max_steps is 0; give at least 1, or -1 for no limit",
    ),
    (["pretrain", SHIPPED, "--backbone.img_size", "32"], "backbone.img_size can't be set in a recipe.*is data.size"),
    (["pretrain", SHIPPED, "--backbone.size", "32"], "backbone.size can't be set in a recipe.*is data.size"),
    (
        ["pretrain", SHIPPED, "--smoke", "--backbone.global_pool", "''"],
        "backbone.global_pool is empty, and a pretext task reads pooled features",
    ),
    (["pretrain", SHIPPED, "--out", "~nobody-here/run"], "begins with the home of somebody unknown here"),
    (
        ["pretrain", SHIPPED, "--data.name", "digits", "--data.batch_size", "5000"],
        "the train split of digits has 1,258 images and one step needs 5,000",
    ),
    (["pretrain", SHIPPED, "--data.batch_size", "0"], "data.batch_size is 0"),
    (["pretrain", SHIPPED, "--data.size", "-3"], "data.size is -3; it is a whole number of pixels"),
    (
        ["pretrain", "colorize-resnet10t-emoji", "--data.name", "fashion-mnist"],
        "the task colorize needs colour images, and those of fashion-mnist are grey",
    ),
    (
        ["pretrain", "mae-vit-fashion-mnist", "--smoke", "--backbone.patch_size", "5"],
        "patches of 5 pixels, which don't divide images of 28",
    ),
    (
        ["pretrain", "mae-vit-fashion-mnist", "--backbone.patch_size", "4", "--data.size", "30"],
        "patches of 4 pixels, which don't divide images of 30",
    ),
    (["pretrain", "{run}/checkpoint/zoo.json"], "task is not a key of this recipe|names no task|is not a key"),
    (["pretrain", SHIPPED, "--resume"], f"runs/{SHIPPED}-s0 holds no run to resume; leave out --resume to start one"),
    (["adapt", "smal", "--data", "digits", "--hub", "{hub}"], "has no checkpoint smal; did you mean small?"),
    (["adapt", "{hub}", "--data", "digits"], "holds no checkpoint"),
    (["evaluate", "no/such/folder"], "no/such/folder is neither a folder nor the name of a checkpoint"),
    (["evaluate", "{run}", "--data", "digitz"], "there is no data set 'digitz'; did you mean digits?"),
    (["pull", "small", "--hub", "nowhere"], "nowhere is not a hub"),
    (["push", "{run}", "--to", "https://example.org/hub"], "can't be pushed to"),
    (["push", "{hub}", "--to", "another"], "holds no checkpoint"),
    (["verify", "nowhere"], "nowhere is neither a hub"),
    (["report", "{run}", "nowhere"], "has no checkpoint nowhere|nowhere is neither|there is no hub"),
    (["report", "{run}", "--out", "/proc/nowhere/page.html"], "/proc/nowhere/page.html can't be written"),
    (["new-task", "My_Task"], "'My_Task' can't name a task"),
    (["report", "{run}", "--out", "/dev/null"], "/dev/null can't be written: it is no ordinary file; give another"),
    (["report", "{run}", "--out", "a" * 300], "can't be written: File name too long"),
    (["info", "a" * 300], "File name too long|is neither a task"),
    (["new-task", "mae"], "there is a task mae already"),
    (["new-task", "a" * 300], "can't be used: File name too long"),
    (["new-task", "imported"], "imported stands in a card for the task that nobody knows; choose another name"),
]


@pytest.mark.parametrize(("words", "sentence"), ERRORS, ids=[" ".join(words)[:70] for words, _ in ERRORS])
def test_one_sentence(words, sentence, refused, monkeypatch):
    monkeypatch.setattr("zoo.data.module.load_data", _no_download(zoo.load_data))
    got = refused(*words)
    assert re.search(re.escape(sentence) if not re.search(r"\.\*|\|", sentence) else sentence, got), got


def _no_download(load):
    """Nothing that a recipe gets wrong may cost a download first."""

    def load_data(name, *given, **also):
        assert name not in ("fashion-mnist", "emoji"), f"{name} was asked for before the mistake was found"
        return load(name, *given, **also)

    return load_data


# ---- errors that need something to be there first ------------------------------------------------


@register_task("needs-labels")
class NeedsLabels(PretextTask):
    """Not meant to be trained: it is there to be refused."""

    needs = ("image", "label")

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)

    def views(self, batch):
        raise AssertionError("never trained")

    forward = views


registry._here.pop("needs-labels")  # known in the one test that asks for it


def pictures(folder: Path, count: int = 4) -> Path:
    """An unlabelled folder."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 16), (40 * number, 90, 10)).save(folder / f"{number}.png")
    return folder


def test_a_task_that_needs_what_the_data_lack(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(registry._here, "needs-labels", NeedsLabels)
    Path("recipe.yaml").write_text(
        "task: {name: needs-labels}\nbackbone: {name: test_resnet}\ndata: {name: digits}\ntrainer: {max_steps: 2}\n"
    )
    folder = pictures(tmp_path / "flat")
    sentence = f"the task needs-labels needs label, which folder:{folder} doesn't have; its fields are image"
    assert (
        refused("pretrain", "recipe.yaml", "--data.name", f"folder:{folder}") == sentence and not Path("runs").exists()
    )


@pytest.mark.parametrize("verb", ["adapt", "evaluate"])
def test_measuring_on_data_without_labels(verb, refused, tmp_path):
    folder = pictures(tmp_path / "flat")
    assert re.match(
        f"folder:{folder} has no labels .*0.png lies in no class folder",
        refused(verb, "{run}", "--data", f"folder:{folder}"),
    )


def test_an_image_that_cannot_be_read(refused, tmp_path):
    folder = pictures(tmp_path / "flat")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    file = recipe_file(data={"name": f"folder:{folder}", "batch_size": 2})
    assert re.fullmatch(
        rf"the image {folder}/2\.png can't be read \(.*\); remove it or mend it", refused("pretrain", file)
    )


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A run of one's own to spoil."""
    return shutil.copytree(trained, tmp_path / "copied")


def _truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])


def _flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _cut_the_card(folder: Path) -> None:
    (folder / "zoo.json").write_text((folder / "zoo.json").read_text()[:100])


SPOILED = [
    (_truncate, "model.safetensors"),
    (_flip_a_bit, "model.safetensors"),
    (lambda folder: (folder / "heads.safetensors").unlink(), "heads.safetensors"),
    (_cut_the_card, "zoo.json"),
]


@pytest.mark.parametrize(("spoil", "name"), SPOILED, ids=["truncated", "altered", "missing", "card"])
@pytest.mark.parametrize(
    "words",
    [
        ["adapt", "{}", "--data", "digits"],
        ["evaluate", "{}"],
        ["reproduce", "{}"],
        ["report", "{}"],
        ["push", "{}", "--to", "somewhere"],
        ["info", "{}"],
    ],
    ids=lambda words: words[0],
)
def test_a_damaged_checkpoint(words, spoil, name, refused, copied):
    spoil(copied / "checkpoint")
    assert f"{copied}/checkpoint/{name}" in refused(*(word.replace("{}", str(copied)) for word in words))
    assert not Path("adapted").exists() and not Path("report.html").exists()


def test_a_folder_that_holds_a_run(refused, copied):
    file = recipe_file()
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert (
        refused("pretrain", file, "--out", copied)
        == f"{copied} holds a run already; add --resume to go on with it, or --out ANOTHER-FOLDER"
    )
    assert refused("pretrain", file, "--out", copied, "--resume", "--optim.lr", "0.5") == (
        f"{copied} was begun with optim.lr 0.002, and the recipe now says 0.5; resume it unchanged, or start a new "
        "run with --out"
    )
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    assert (
        refused("pretrain", file, "--out", "nothing", "--resume")
        == "nothing holds no run to resume; leave out --resume to start one"
    )


def test_a_run_whose_states_are_all_damaged(refused, copied):
    for state in copied.glob("*.ckpt"):
        state.write_bytes(state.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        assert f"no saved state of {copied} is whole" in refused("pretrain", recipe_file(), "--out", copied, "--resume")


def test_a_run_whose_data_have_changed(refused, tmp_path, zoo_says):
    folder = pictures(tmp_path / "flat")
    file = recipe_file(data={"name": f"folder:{folder}", "batch_size": 2}, trainer={"max_steps": 1})
    assert zoo_says("pretrain", file, "--out", "run", "--no-progress")[0] == 0
    Image.new("RGB", (20, 16), (1, 2, 3)).save(folder / "another.png")
    assert refused("pretrain", file, "--out", "run", "--resume") == (
        "the data of run have changed since the run began, so it can't be resumed; start a new one with --out"
    )


def test_a_loss_that_is_no_number(refused):
    """By a learning rate that no network survives."""
    got = refused(
        "pretrain", recipe_file(trainer={"max_steps": 50}), "--optim.lr", "1e30", "--optim.warmup", "0", "--no-progress"
    )
    assert re.match(
        r"the loss of autoencoder is (nan|inf) at epoch 0, batch \d+ .*; a lower optim.lr or a longer optim.warmup "
        r"usually mends it",
        got,
    )


@pytest.fixture
def full_disk(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that takes 300 kB: a file system of its own where one may mount such, else writing there is made to
    fail.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted and mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", folder], check=True)
        return

    def failing(make):
        def attempt(*given, **also):
            if Path(also["dir"]).is_relative_to(folder):
                raise OSError(errno.ENOSPC, "No space left on device")
            return make(*given, **also)

        return attempt

    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, failing(getattr(tempfile, name)))
    yield folder


FULL = (
    "can't be written: (the disk is full and [0-9,]+ bytes are needed|it needs [0-9,]+ bytes and [0-9,]+ are "
    "free).*untouched"
)


def test_a_full_disk(refused, full_disk, copied, monkeypatch):
    assert re.search(FULL, refused("pretrain", recipe_file(), "--out", full_disk / "run", "--no-progress"))
    assert not (full_disk / "run/checkpoint").exists() and not list(full_disk.rglob("*.new"))
    shutil.rmtree(full_disk / "run", ignore_errors=True)
    assert re.search(FULL, refused("push", copied, "--to", full_disk / "hub"))
    assert re.search(
        FULL, refused("adapt", copied, "--data", "digits", "--per-class", "3", "--out", full_disk / "adapted")
    )
    assert not (full_disk / "adapted").exists()
    monkeypatch.setenv("ZOO_HOME", str(full_disk / "home"))
    assert re.search("can't be written|needs [0-9,]+ bytes in .* are free", refused("pull", "small", "--hub", "{hub}"))
