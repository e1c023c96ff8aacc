"""S1 to S3: files and addresses from strangers run nothing, recipes, cards and indexes lead nowhere.

A canary is a file that appears when code of the stranger runs; each test that looks for it shows too that it would have
appeared.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from checkpoint_example import pictures, untrained
from hub_server import Server
from recipe_example import BASE, no_hang, sentence
from run_example import RECIPE, place, train  # noqa: F401

import zoo
from zoo import card as cards
from zoo import cli
from zoo.errors import ZooError
from zoo.hub import hub
from zoo.hub import push as pushing
from zoo.recipe import flat, keys, read
from zoo.tasks.load import load_task

# ---- S1: what would run code ---------------------------------------------------------------------


class Song:
    """Pickled, it is an instruction to open a file for writing."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def hostile(tmp_path) -> Callable[[str], bytes]:
    """Gives files that would make the canary appear if they were unpickled; in the end shows that they would have."""
    song, made = tmp_path / "song", []

    def make(way: str) -> bytes:
        content = {"state_dict": {"conv1.weight": torch.ones(2)}, "hyper_parameters": Song(song)}
        file = tmp_path / "hostile"
        if way == "pickle":
            file.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=way == "zip")
        made.append(file)
        return file.read_bytes()

    yield make
    assert not song.exists(), "a stranger's code ran"
    assert made, "nothing hostile was made"
    with contextlib.suppress(Exception):
        torch.load(made[-1], weights_only=False)
    assert song.exists(), "the canary would not have appeared anyway"


def put(folder: Path, name: str, data: bytes) -> None:
    """A file into a checkpoint, and the card changed with it, as a stranger would do it."""
    (folder / name).write_bytes(data)
    card = json.loads((folder / "zoo.json").read_text())
    card["files"] = [entry for entry in card["files"] if entry["path"] != name] + [cards.entry_for(name, data)]
    (folder / "zoo.json").write_text(json.dumps(card))


WAYS = ("zip", "legacy", "pickle")
USES = {
    "load": zoo.load,
    "load_task": load_task,
    "adapt": lambda folder: zoo.adapt(folder, "digits", mode="knn"),
    "evaluate": lambda folder: zoo.evaluate(folder, "digits", protocols=("knn",)),
    "reproduce": lambda folder: cli.main(["reproduce", str(folder)]),
    "report": lambda folder: zoo.report("page.html", [folder]),
    "push": lambda folder: zoo.push(folder, "another"),
    "info": lambda folder: cli.main(["info", str(folder)]),
    "verify": lambda folder: hub.verify(folder),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors", "config.json", "views.png"])
def test_s1_a_pickle_in_the_place_of_a_checkpoints_files(name, way, hostile, tmp_path):
    folder = untrained(tmp_path / "bad")
    put(folder, name, hostile(way))
    for use in USES.values():
        with contextlib.suppress(ZooError, SystemExit):
            use(folder)
    if name in ("model.safetensors", "config.json"):
        with pytest.raises(ZooError, match=name):
            zoo.load(folder)


@pytest.mark.parametrize("way", WAYS)
def test_s1_a_pickle_beside_and_instead_of_the_card(way, hostile, tmp_path):
    folder = untrained(tmp_path / "bad")
    for name in ("pytorch_model.bin", "model.pth", "last.ckpt", "model.ckpt"):
        (folder / name).write_bytes(hostile(way))
    zoo.load(folder)  # beside it: never looked at
    (folder / "model.safetensors").unlink()
    with pytest.raises(ZooError, match="model.safetensors is missing"):  # and nothing to fall back to
        zoo.load(folder)
    (folder / "zoo.json").write_bytes(hostile(way))
    for use in (zoo.load, load_task, hub.verify):
        with contextlib.suppress(ZooError):
            use(folder)
    with pytest.raises(ZooError, match="zoo.json"):
        zoo.load(folder)


@pytest.mark.parametrize("way", WAYS)
def test_s1_what_a_web_server_gives(way, hostile, tmp_path, monkeypatch):
    """Lightning and torch.hub unpickle what an address serves; nothing of ours hands them one."""
    monkeypatch.delenv("ZOO_OFFLINE")
    served = tmp_path / "served"
    served.mkdir()
    zoo.push(untrained(tmp_path / "good"), served)
    (served / "evil.ckpt").write_bytes(hostile(way))
    (served / "good" / "model.safetensors").write_bytes(hostile(way))
    server = Server(served)
    try:
        address = f"{server.address}/evil.ckpt"
        task = zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=16))
        for use in (
            zoo.load,
            lambda a: hub.pull(a),
            lambda a: hub.pull("good", a),
            lambda a: zoo.adapt(a, "digits", mode="knn"),
            lambda a: zoo.import_checkpoint(a, "test_resnet", "made", allow_partial=True),
            lambda a: type(task).load_from_checkpoint(a, backbone=task.backbone),
            lambda a: zoo.pretrain(a, out="run"),
            lambda a: zoo.pretrain(RECIPE, out=a, resume=True, progress=False),
            lambda a: zoo.create_data(f"folder:{a}"),
            lambda a: L.Trainer(
                max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
            ).fit(task, zoo.create_data("digits", size=16, batch_size=64), ckpt_path=a),
        ):
            sentence(lambda use=use: use(address))
        assert cli.main(["data", "get", "cifar10", "--from", address]) == 2
        with pytest.raises(ZooError, match="model.safetensors"):
            hub.pull("good", server.address)
        assert not any(path.endswith("evil.ckpt") for path, _ in server.requests), "it was even asked for"
    finally:
        server.server.shutdown()
        server.server.server_close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_s1_the_state_of_a_run(way, hostile, tmp_path):
    """Also with a checksum that holds, which whoever writes the file can write too."""
    run = train(tmp_path / "run", trainer={"max_steps": 2})
    data = hostile(way)
    for name in ("last.ckpt", "previous.ckpt"):
        (run / name).write_bytes(data)
        (run / f"{name}.sha256").write_text(hashlib.sha256(data).hexdigest())
    with pytest.raises(ZooError, match="can't be read as the state of a run"):
        zoo.pretrain(RECIPE | {"trainer": RECIPE["trainer"] | {"max_steps": 2}}, out=run, resume=True, progress=False)
    task = load_task(run / "checkpoint")
    with pytest.raises(Exception, match="weights_only|Weights only|[Uu]npickl"):
        type(task).load_from_checkpoint(run / "last.ckpt", backbone=task.backbone)


@pytest.mark.parametrize("way", WAYS)
def test_s1_pictures_caches_and_files_of_data(way, hostile, tmp_path):
    folder = pictures(tmp_path / "pictures", images=20)
    image = (
        zoo.load_data(f"folder:{folder}", 16).fields["image"].clone()
    )  # the map itself mustn't be open while its file is replaced
    (cache,) = (path for path in (tmp_path / "home/cache").iterdir() if path.is_dir())
    (cache / "images.npy").write_bytes(hostile(way))  # made anew
    assert torch.equal(zoo.load_data(f"folder:{folder}", 16).fields["image"], image)
    (cache / "index.json").write_bytes(hostile(way))
    assert len(zoo.load_data(f"folder:{folder}", 16).fields["image"]) == 20
    import numpy as np

    np.save(cache / "images.npy", np.array([Song(tmp_path / "song")], dtype=object), allow_pickle=True)
    assert len(zoo.load_data(f"folder:{folder}", 16).fields["image"]) == 20
    (folder / "left" / "000.png").write_bytes(hostile(way))
    with pytest.raises(ZooError, match="left/000.png can't be read"):
        zoo.load_data(f"folder:{folder}", 16)
    raw = tmp_path / "cifar-10-batches-py"  # a set whose own files are pickles
    raw.mkdir()
    for name in (
        "batches.meta",
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        (raw / name).write_bytes(hostile(way))
    assert cli.main(["data", "get", "cifar10", "--from", str(raw)]) == 2
    shutil.copytree(raw, tmp_path / "home/data/cifar10/cifar-10-batches-py")
    with pytest.raises(ZooError):
        zoo.load_data("cifar10")


OVERLAP = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
NONE = {
    "empty": b"",
    "garbage": b"\xff" * 64,
    "huge header": (1 << 63).to_bytes(8, "little") + b"{}",
    "trailing": b"\x02" + bytes(7) + b"{}x",
    "no tensors": b"\x02" + bytes(7) + b"{}",
    "overlap": len(OVERLAP).to_bytes(8, "little") + OVERLAP + bytes(8),
}


@pytest.mark.parametrize("data", NONE.values(), ids=NONE)
def test_s1_safetensors_that_are_none(data, tmp_path):
    folder = untrained(tmp_path / "bad")
    put(folder, "model.safetensors", data)
    with pytest.raises(ZooError, match="not a whole safetensors file|fits only 0.0 %"):
        zoo.load(folder)
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ZooError, match="w.safetensors"):
        zoo.import_checkpoint(tmp_path / "w.safetensors", "test_resnet", tmp_path / "made")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported or called; each test ends by showing that it would
    have.
    """
    song = tmp_path / "song"
    (tmp_path / "canary.py").write_text(f"""import pathlib
def sing(*a, **k): pathlib.Path({str(song)!r}).touch()
sing()
class Boom(dict): pass
""")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert "canary" not in sys.modules and not song.exists(), "a recipe ran code"
    importlib.import_module("canary")
    assert song.exists()
    del sys.modules["canary"]


HOSTILE = [
    "task: {name: simclr, class_path: canary.Boom}",
    "task: {class_path: canary.Boom, init_args: {}}",
    "task: {name: canary.Boom}",
    "task: {name: 'canary:Boom'}",
    "task: {name: simclr, _target_: canary.sing}",
    "task: {name: simclr, temperature: canary.sing}",
    "task: {name: simclr, temperature: {class_path: canary.Boom}}",
    "task: {name: simclr, temperature: '{class_path: canary.Boom}'}",
    "task: {name: simclr, hidden: '!!python/object/apply:canary.sing []'}",
    "task: !!python/object/apply:canary.sing []",
    "task: {name: !!python/name:canary.Boom }",
    "task: {name: !!python/module:canary }",
    "task: !!python/object:canary.Boom {}",
    "task: {name: simclr, backbone: {class_path: canary.Boom}}",
    "backbone: {name: canary.Boom}",
    "backbone: {name: 'local-dir:.'}",
    "backbone: {name: test_resnet, class_path: canary.Boom}",
    "backbone: {name: test_resnet, act_layer: canary.Boom}",
    "backbone: {name: test_resnet, norm_layer: 'canary:Boom'}",
    "backbone: {name: test_resnet, _target_: canary.sing}",
    "backbone: {name: test_resnet, block: canary.Boom}",
    "backbone: {name: test_resnet, checkpoint_path: canary.py}",
    "backbone: {name: test_resnet, pretrained: true}",
    "backbone: {name: 'hf-hub:a/b'}",
    "data: {name: canary.Boom}",
    "data: {name: digits, class_path: canary.Boom}",
    "data: {name: digits, size: '{class_path: canary.Boom}'}",
    "data: {class_path: canary.Boom}",
    "optim: {name: canary.Boom}",
    "optim: {class_path: canary.Boom}",
    "optim: {lr: '@canary.py'}",
    "trainer: {callbacks: [canary.Boom]}",
    "trainer: {logger: {class_path: canary.Boom}}",
    "trainer: {accelerator: canary.Boom}",
    "trainer: {precision: canary.Boom}",
    "config: canary.py",
    "class_path: canary.Boom",
    "_target_: canary.sing",
    "__import__: canary",
    "print_config: true",
    "seed: canary.sing",
    "seed: !!python/object/apply:canary.sing []",
]


@pytest.mark.parametrize("line", HOSTILE)
def test_s1_nothing_in_a_recipe_is_imported_or_run(line, canary, tmp_path, capsys):
    group = line.split(":")[0]
    file = tmp_path / "hostile.yaml"
    file.write_text("\n".join([line, *(yaml.safe_dump({key: value}) for key, value in BASE.items() if key != group)]))
    sentence(lambda: zoo.pretrain(file, out=tmp_path / "run", smoke=True, progress=False))
    with contextlib.suppress(ZooError):  # asking for help is no more dangerous
        keys(dict(flat(read(file))))
    assert cli.main(["pretrain", str(file), "--smoke", "--out", str(tmp_path / "again")]) == 2
    assert (
        capsys.readouterr().err.startswith("zoo: ")
        and not list(tmp_path.glob("run/*"))
        and not list(tmp_path.glob("again/*"))
    )


# ---- S2: recipes ---------------------------------------------------------------------------------


def _laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)
    ]
    return "\n".join(lines)


S2 = {
    "class_path": ("task: {name: simclr, class_path: os.system}", "class_path is not a key"),
    "_target_": ("task: {name: simclr, _target_: os.system}", "_target_ is not a key"),
    "!!python": ("task: !!python/object/apply:os.system [true]", "YAML tags"),
    "deep": ("[" * 30_000 + "]" * 30_000, "nested at most 8 deep"),
    "deep mapping": ("{a: " * 15_000, "nested at most 8 deep"),
    "laughs": (_laughs(), "YAML aliases"),
    "huge": (None, "larger than 64 KiB"),
    "deeper than the limit of size": ("[" * 1_000_000, "larger than 64 KiB"),
}


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within a second of computing, however busy the machine is."""
    start = time.process_time()
    with no_hang(20):
        yield
    took = time.process_time() - start
    assert took < 1, f"it took {took:.1f} s"


@pytest.mark.parametrize("kind", S2)
def test_s2_recipes_are_refused_at_once_by_every_entry(kind, tmp_path, capsys):
    text, words = S2[kind]
    file = tmp_path / "recipe.yaml"
    if text is None:
        with open(file, "wb") as huge:  # 100 MB
            huge.truncate(100 << 20)
    else:
        rest = (
            ""
            if kind.startswith(("deep", "laughs"))
            else "\n" + "\n".join(yaml.safe_dump({k: v}) for k, v in BASE.items() if k != "task")
        )
        file.write_text(text + rest)
    with at_once():
        assert words in sentence(lambda: zoo.pretrain(file, out=tmp_path / "run", smoke=True, progress=False))
    for more in ([], ["--help"]):
        with at_once():
            code = cli.main(["pretrain", str(file), "--out", str(tmp_path / "run"), *more])
        assert code == 2 or (more and kind in ("class_path", "_target_") and code == 0)  # help lists the keys there are
    assert not (tmp_path / "run").exists()


# ---- S3: cards and indexes -----------------------------------------------------------------------


def _path(path: str) -> Callable[[str], str]:
    return lambda text: text.replace('"model.safetensors"', json.dumps(path), 1)


S3 = {
    "parent": _path("../model.safetensors"),
    "parents": _path("../../../../x.json"),
    "absolute": _path("/tmp/x.json"),
    "drive": _path("C:\\x.json"),
    "backslash": _path("..\\x.json"),
    "nul": _path("a\0.json"),
    "folder": _path("a/b.json"),
    "hidden": _path(".x.json"),
    "card": _path("zoo.json"),
    "code": _path("model.py"),
    "pickle": _path("model.pkl"),
    "newline": _path("a\n.json"),
    "turned around": _path("a\u202egnp.json"),
    "huge int": lambda text: text.replace('"seed": 0', '"seed": ' + "9" * 5000, 1),
    "infinite": lambda text: text.replace('"seed": 0', '"seed": 1e999', 1),
    "twice": lambda text: text.replace('"seed": 0', '"seed": 0, "seed": 0', 1),
    "size": lambda text: text.replace('"size": 16', '"size": 100000', 1),
    "size zero": lambda text: text.replace('"size": 16', '"size": 0', 1),
    "unknown": lambda text: text.replace("{", '{"class_path": "os.system", ', 1),
    "deep": lambda text: text.replace('"machine": {', '"machine": {"a": ' + "[" * 2000 + "]" * 2000 + ", ", 1),
}


@pytest.mark.parametrize("kind", S3)
def test_s3_a_card_that_leads_elsewhere_is_refused(kind, tmp_path):
    """In a hub whose index vouches for it."""
    zoo.push(untrained(tmp_path / "good"), tmp_path / "hub")
    file = tmp_path / "hub/good/zoo.json"
    text = S3[kind](json.dumps(json.loads(file.read_text())))
    assert text != json.dumps(json.loads(file.read_text())), "the card is as it was"
    file.write_text(text)
    index = json.loads((tmp_path / "hub/index.json").read_text())
    index["checkpoints"]["good"]["card"] = {
        "size": len(text.encode()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    (tmp_path / "hub/index.json").write_text(json.dumps(index))
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    with no_hang(10):
        for use in (
            lambda: hub.pull("good", tmp_path / "hub"),
            lambda: zoo.load(tmp_path / "hub/good"),
            lambda: pushing.push(tmp_path / "hub/good", "x"),
        ):
            assert "zoo.json" in sentence(use) or kind in ("nul",)
        assert hub.verify(tmp_path / "hub")
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} <= before | {tmp_path / "here/x"}
    assert not [path for path in (tmp_path / "home/hub").glob("*") if len(path.name) == 64]


INDEXES = {
    "parent": ("good", "../good"),
    "absolute": ("good", "/etc"),
    "nul": ("good", "a\0b"),
    "drive": ("good", "C:x"),
}


@pytest.mark.parametrize("kind", [*INDEXES, "twice", "huge int", "link"])
def test_s3_an_index_that_leads_elsewhere_is_refused(kind, tmp_path):
    zoo.push(untrained(tmp_path / "good"), tmp_path / "hub")
    file = tmp_path / "hub/index.json"
    index = json.loads(file.read_text())
    if kind in INDEXES:
        was, name = INDEXES[kind]
        index["checkpoints"] = {name: index["checkpoints"][was]}
        file.write_text(json.dumps(index))
    elif kind == "link":
        file.rename(tmp_path / "index.json")
        file.symlink_to(tmp_path / "index.json")
    else:
        text, entry = file.read_text(), json.dumps(index["checkpoints"]["good"])
        file.write_text(
            f'{{"schema": 1, "checkpoints": {{"good": {entry}, "good": {entry}}}}}'
            if kind == "twice"
            else text.replace('"schema": 1', '"schema": ' + "9" * 30, 1)
        )
    for name in ("good", "../good", "/etc"):
        sentence(lambda name=name: hub.pull(name, tmp_path / "hub"))
    sentence(lambda: hub.list_checkpoints(tmp_path / "hub"))
    assert not (tmp_path / "home/hub").exists()
