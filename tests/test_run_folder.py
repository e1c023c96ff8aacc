"""Which folder a run gets: one that nobody is in and in which nothing would be lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import killing
import numpy as np
import pytest
import run_example
import yaml
from PIL import Image
from run_example import place, weights  # noqa: F401

import zoo
from zoo.card import read_card
from zoo.errors import ZooError
from zoo.train import run_folder

USUAL = Path("runs/autoencoder-test_resnet-digits-s0")


def folder_of(count: int, name: str = "pictures") -> Path:
    """`count` pictures of 16 pixels and more."""
    folder, draw = Path(name).absolute(), np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (16 + number % 3, 20, 3), dtype=np.uint8)).save(
            folder / f"{number:03}.png"
        )
    return folder


def train(out: Path | str | None = None, resume: bool = False, data: dict | None = None, **trainer) -> Path:
    values = run_example.recipe(data=data or {}, trainer={"max_steps": 2} | trainer)
    return zoo.pretrain(values, out=out, resume=resume, progress=False)


def refused(*given, **also) -> str:
    with pytest.raises(ZooError) as error:
        train(*given, **also)
    return str(error.value)


# ---- a batch that the folder can't fill ----------------------------------------------------------


def test_a_batch_size_that_the_recipe_gives_is_lowered_and_written_down(capfd):
    data = {"name": f"folder:{folder_of(30)}"}
    run = train("run", data=data)
    assert "has 26 images, so a step takes 26 instead of 128 (data.batch_size)" in capfd.readouterr().err
    saved, card = yaml.safe_load((run / "recipe.yaml").read_text()), read_card(run / "checkpoint")
    assert saved["data"]["batch_size"] == card["recipe"]["data"]["batch_size"] == 26 and card["samples_seen"] == 52
    assert train("run", resume=True, data=data) == run
    again = zoo.pretrain(run / "recipe.yaml", out="again", progress=False)
    assert weights(again) == weights(run)


def test_one_that_is_lowered_is_resumed_as_it_was_begun(tmp_path):
    data = {"name": f"folder:{folder_of(30)}"}
    whole = train("whole", data=data, max_steps=4, save_every=2)

    def to_be_killed():
        killing.at(zoo.tasks.base.PretextTask, "training_step", 3)
        train("cut", data=data, max_steps=4, save_every=2)

    assert killing.forked(to_be_killed) == -signal.SIGKILL and Path("cut/last.ckpt").is_file()
    assert weights(train("cut", resume=True, data=data, max_steps=4, save_every=2)) == weights(whole)


def test_one_that_a_person_gave_is_refused_before_anything_is_written():
    values, folder = run_example.recipe(trainer={"max_steps": 1}), folder_of(30)
    with pytest.raises(ZooError, match="has 26 images and one step needs 100; give data.batch_size 26 or less"):
        zoo.pretrain(values, progress=False, data={"name": f"folder:{folder}", "batch_size": 100})
    assert not Path("runs").exists()
    zoo.pretrain(values, progress=False, data={"name": f"folder:{folder}", "batch_size": 26})  # as it was told
    with pytest.raises(ZooError, match="the train split of digits has 1,.* images and one step needs 2,000"):
        train(data={"batch_size": 2000})  # of a named set the recipe's author knew the size
    assert not Path("runs/autoencoder-test_resnet-digits-s0").exists()


def test_too_few_for_anything(capfd):
    data = {"name": f"folder:{folder_of(2)}"}
    assert refused(data=data) == (
        "batch normalisation has no spread to go by in a step of data.batch_size 1; add images to the folder "
        "(a larger data.size may do as well)"
    )
    module = zoo.create_data(data["name"])
    with pytest.raises(
        ZooError, match="has 1 images, and each of 2 processes needs one at least; add images, or start fewer processes"
    ):
        module.ensure_full_step(2)


def test_plain_lightning_gets_a_batch_that_the_folder_fills(capfd):
    import lightning as L

    module = zoo.create_data(f"folder:{folder_of(30)}", size=16)
    task = zoo.create_task("autoencoder", zoo.create_backbone("test_resnet", size=16), code=8, width=8)
    trainer = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(task, module)
    assert (
        trainer.global_step == 1
        and module.batch_size == 26
        and "a step takes 26 instead of 256" in capfd.readouterr().err
    )
    with pytest.raises(ZooError, match="has 26 images and one step needs 27; give data.batch_size 26 or less"):
        trainer.fit(task, zoo.create_data(module.dataset.info.name, batch_size=27, size=16))
    assert zoo.create_data("digits").batch_size == 256


# ---- whose folder it is --------------------------------------------------------------------------


def test_the_usual_folder_gets_a_number_where_another_run_has_taken_it(capfd):
    runs = [train() for _ in range(3)]
    assert runs == [USUAL, Path(f"{USUAL}-2"), Path(f"{USUAL}-3")] and all(
        (run / "checkpoint").is_dir() for run in runs
    )
    assert f"{USUAL} is taken by another run, so this one goes to {USUAL}-2" in capfd.readouterr().err
    assert refused(USUAL) == f"{USUAL} holds a run already; add --resume to go on with it, or --out ANOTHER-FOLDER"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint/notes.txt",
        "last.ckpt",
        "previous.ckpt",
        "recipe.yaml",
        "run.json",
        "metrics.csv",
        "bad_samples.jsonl",
    ],
)
def test_what_somebody_keeps_under_a_name_of_ours_is_left_alone(name):
    theirs = Path("mine") / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    assert (
        refused("mine")
        == f"mine holds no run, but {name.split('/')[0]}, which a run would replace; move it away, or add --out "
        "ANOTHER-FOLDER"
    )
    assert theirs.read_text() == "years of work" and [path for path in Path("mine").rglob("*") if path.is_file()] == [
        theirs
    ]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_the_facts_that_a_run_was_begun_with_it_is_not_begun_anew(content):
    """Over what it had saved."""
    run = train("run")
    before = (run / "last.ckpt").read_bytes()
    (run / "run.json").unlink() if content is None else (run / "run.json").write_text(content)
    assert "run.json" in refused("run", resume=True) and (run / "last.ckpt").read_bytes() == before


def test_a_run_that_ended_before_it_saved_anything_is_begun_anew(monkeypatch):
    def fail(*given):
        raise ZooError("a fault in the first step")

    with monkeypatch.context() as changed:
        changed.setattr(zoo.tasks.base.PretextTask, "training_step", fail)
        assert refused("run") == "a fault in the first step"
    assert {path.name for path in Path("run").iterdir()} >= {"run.json", "recipe.yaml"}
    assert train("run") == Path("run") and (Path("run") / "checkpoint").is_dir()


def test_the_home_of_a_person(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train("~/run") == tmp_path / "run" and (tmp_path / "run/checkpoint").is_dir() and not Path("~").exists()


def test_a_folder_without_a_name_is_none():
    assert refused("") == "out is empty; give a folder, or leave it out"


def _interrupted(**also) -> None:
    """The command line, killed in its fourth step; a state is saved each second."""

    def to_be_killed():
        killing.at(zoo.tasks.base.PretextTask, "training_step", 3)
        train(max_steps=5, save_every=2, **also)

    assert killing.forked(to_be_killed) == -signal.SIGKILL


def test_an_interrupted_run_is_not_left_behind_for_a_new_one():
    train()  # another recipe's, for it is shorter
    _interrupted()
    assert (Path(f"{USUAL}-2") / "last.ckpt").is_file()
    assert (
        refused(max_steps=5, save_every=2)
        == f"{USUAL}-2 holds a run already; add --resume to go on with it, or --out ANOTHER-FOLDER"
    )
    assert train(resume=True, max_steps=5, save_every=2) == Path(f"{USUAL}-2")
    assert train(resume=True) == USUAL and train(max_steps=5, save_every=2) == Path(f"{USUAL}-3")
    assert refused(resume=True, max_steps=9) == (
        f"{USUAL} was begun with trainer.max_steps 2, and the recipe now says 9; resume it unchanged, "
        "or start a new run with --out"
    )


@pytest.mark.parametrize("out", [None, "run"])
def test_a_run_that_saved_nothing_makes_way(out):
    def to_be_killed():
        killing.at(zoo.tasks.base.PretextTask, "training_step", 1)
        train(out)

    assert killing.forked(to_be_killed) == -signal.SIGKILL
    left = Path(out) if out else USUAL
    assert (left / "recipe.yaml").is_file() and not (left / "last.ckpt").exists()
    (left / "bad_samples.jsonl").write_text("of the one before\n")
    assert (
        train(out, max_steps=3) == left
        and read_card(left / "checkpoint")["steps"] == 3
        and not (left / "bad_samples.jsonl").exists()
    )


def test_two_at_once_never_share_a_folder():
    """The first stands still in its first step, with nothing saved."""
    reading, writing = os.pipe()

    def stands_still():
        killing.at(zoo.tasks.base.PretextTask, "training_step", 0, lambda: (os.write(writing, b"x"), signal.pause()))
        train(USUAL)

    child = os.fork()
    if child == 0:
        try:
            stands_still()
        finally:
            os._exit(1)
    try:
        assert os.read(reading, 1) == b"x"
        assert (
            refused(USUAL)
            == f"another process is training in {USUAL}; wait until it has ended, or add --out ANOTHER-FOLDER"
        )
        assert refused(USUAL, resume=True).startswith("another process is training in")
        assert train() == Path(f"{USUAL}-2")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert train(USUAL) == USUAL  # whose lock ended with it


def test_where_there_are_no_locks_what_was_begun_is_left_alone(monkeypatch):
    def without(*ignored):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "flock", without)
    assert train() == USUAL
    (USUAL / "last.ckpt").unlink(), (USUAL / "checkpoint").rename("elsewhere")
    assert refused(USUAL).startswith(f"{USUAL} holds a run already")


def test_a_refused_run_leaves_no_folder_behind():
    assert "can't be read as a recipe" not in refused(
        "deep/below/run", data={"name": f"folder:{folder_of(2)}", "size": 2}
    )
    assert not Path("deep").exists()


def test_a_run_that_was_changed_on_the_command_line_is_not_this_recipes():
    """Though it has all that the recipe says: what the recipe leaves out counts too where a folder is chosen."""
    values = run_example.recipe(trainer={"max_steps": 2})
    assert [train(), zoo.pretrain(values, progress=False, **{"task.noise": 0.1})] == [
        USUAL,
        USUAL.with_name(f"{USUAL.name}-2"),
    ]
    assert train(resume=True) == USUAL
    assert zoo.pretrain(values, resume=True, progress=False, **{"task.noise": 0.1}) == USUAL.with_name(
        f"{USUAL.name}-2"
    )
