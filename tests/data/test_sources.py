"""Getting, checking and installing raw files: which way is taken, and what happens to damage."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from zoo.data.sources import fetch, sources
from zoo.data.sources.sources import SOURCES, Source
from zoo.errors import ZooError

GOOD = {"a.txt": b"alpha", "b.txt": b"beta"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    return tmp_path / "home"


class Way:
    """Counts how often it was asked, then brings `files` or says why not."""

    def __init__(self, files: dict[str, bytes] | None, label: str = "way", local: bool = False):
        self.files, self.label, self.local, self.asked = files, label, local, 0

    def __call__(self, folder: Path) -> Path:
        self.asked += 1
        if self.files is None:
            raise fetch.Unreachable("there is no route")
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def digest(files: dict[str, bytes], folder: Path) -> str:
    folder.mkdir()
    Way(files)(folder)
    return sources.digest_of(sources.hash_files(folder))


@pytest.fixture
def pin(tmp_path):
    return digest(GOOD, tmp_path / "good")


def source(*ways: Way, pin: str | None = None, **other) -> Source:
    return Source(
        "letters",
        lambda path: path if path.endswith(".txt") else None,
        2,
        1000,
        ways,
        "install a client",
        digest=pin,
        **other,
    )


def test_the_digest_is_that_of_sha256sum(tmp_path, pin):
    if sys.platform == "linux":
        out = subprocess.run(
            "sha256sum *.txt | sha256sum", shell=True, cwd=tmp_path / "good", capture_output=True, text=True
        )
        assert out.stdout.split()[0] == pin


def test_what_is_there_is_not_got_again(pin):
    way = Way(GOOD)
    folder = sources.get(source(way, pin=pin))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == GOOD
    assert sources.get(source(way, pin=pin)) == sources.ensure(source(way, pin=pin)) == folder
    assert way.asked == 1
    assert json.loads((folder.parent / "files.json").read_text())["from"] == "way"


def test_ways_are_tried_in_order_and_wrong_files_are_passed_over(pin):
    ways = Way(None), Way({**GOOD, "b.txt": b"bets"}), Way({"a.txt": b"alpha"}), Way(GOOD), Way(GOOD)
    assert (sources.get(source(*ways, pin=pin)) / "b.txt").read_bytes() == b"beta"
    assert [way.asked for way in ways] == [1, 1, 1, 1, 0]


def test_no_way_is_one_sentence_that_names_each(home, pin):
    ways = Way(None, "first"), Way({**GOOD, "b.txt": b"bets"}, "second"), Way({"a.txt": b"alpha"}, "third")
    with pytest.raises(ZooError) as caught:
        sources.get(source(*ways, pin=pin))
    said = str(caught.value)
    for part in (
        "first: there is no route",
        "second: ",
        "damaged or of another version",
        "holds 1 of the 2 files",
        "install a client",
        "`zoo data get letters --from FILE`",
    ):
        assert part in said
    assert "\n" not in said
    assert [path.name for path in (home / "data").iterdir()] == [".letters.lock"]


def test_offline_asks_nobody_and_names_the_command(monkeypatch, pin):
    way = Way(GOOD)
    with pytest.raises(ZooError, match="download=False.*`zoo data get letters`"):
        sources.ensure(source(way, pin=pin), download=False)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    for call in (sources.ensure, sources.get):
        with pytest.raises(ZooError, match="ZOO_OFFLINE is set.*`zoo data get letters`"):
            call(source(way, pin=pin))
    assert way.asked == 0
    near = Way(GOOD, local=True)
    sources.ensure(source(near, way, pin=pin), download=False)
    assert (near.asked, way.asked) == (1, 0)


def harm(folder: Path, how: str) -> str:
    """Damage an installed set; return the name of the file that a sentence should name."""
    if how == "changed":
        (folder / "raw/b.txt").write_bytes(b"bets")
    elif how == "cut":
        (folder / "raw/b.txt").write_bytes(b"be")
    elif how == "missing":
        (folder / "raw/b.txt").unlink()
    elif how == "stranger":
        (folder / "raw/c.txt").write_bytes(b"gamma")
        return "raw/c.txt"
    else:
        (folder / "files.json").write_text(how)
        return "files.json"
    return "raw/b.txt"


@pytest.mark.parametrize(
    "how", ["changed", "cut", "missing", "stranger", "{", "[]", '{"files": 3}', '{"files": {"a": 1}}']
)
def test_damage_is_named_offline_and_repaired_online(home, pin, how):
    way = Way(GOOD)
    sources.get(source(way, pin=pin))
    name = harm(home / "data/letters", how)
    with pytest.raises(ZooError, match=f"{re.escape(str(home))}/data/letters/{name}.*`zoo data get letters`"):
        sources.ensure(source(way, pin=pin), download=False)
    assert way.asked == 1
    folder = sources.ensure(source(way, pin=pin))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == GOOD
    assert way.asked == 2


def test_a_set_of_another_version_is_replaced(tmp_path, pin):
    old = {**GOOD, "b.txt": b"old"}
    sources.get(source(Way(old), pin=digest(old, tmp_path / "old")))
    assert sources.recorded_digest(source(pin=pin)) is None
    assert (sources.ensure(source(Way(GOOD), pin=pin)) / "b.txt").read_bytes() == b"beta"


def test_unpinned_files_are_held_to_their_first_arrival(home):
    sources.get(source(Way(GOOD)))
    sources.verify(source())
    harm(home / "data/letters", "changed")
    with pytest.raises(ZooError, match=r"b\.txt has been changed"):
        sources.verify(source())


def test_given_files_replace_only_when_they_are_right(tmp_path, home, pin):
    (tmp_path / "wrong").mkdir()
    Way({**GOOD, "b.txt": b"bets"})(tmp_path / "wrong")
    sources.get(source(Way(GOOD), pin=pin))
    with pytest.raises(ZooError, match=f"{tmp_path}/wrong aren't those of letters"):
        sources.get(source(pin=pin), tmp_path / "wrong")
    sources.verify(source(pin=pin))
    harm(home / "data/letters", "missing")
    sources.get(source(pin=pin), tmp_path / "good")
    sources.verify(source(pin=pin))
    assert sorted(path.name for path in (home / "data").iterdir()) == [".letters.lock", "letters"]


def test_a_full_disk_leaves_what_was_there(monkeypatch, home, tmp_path, pin):
    sources.get(source(Way(GOOD), pin=pin))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "gather", full)
        with pytest.raises(ZooError, match="disk is full"):
            sources.get(source(pin=pin), tmp_path / "good")
    sources.verify(source(pin=pin))
    assert not list((home / "data").glob("*.part")) and not list((home / "data").glob(".*.part"))


def test_an_interrupted_get_leaves_nothing_and_a_dead_one_is_swept(home, pin):
    class Interrupted(Way):
        def __call__(self, folder):
            super().__call__(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.get(source(Interrupted(GOOD), pin=pin))
    assert [path.name for path in (home / "data").iterdir()] == [".letters.lock"]
    (home / "data/.letters.dead.part").mkdir()
    (home / "data/.lettersets.alive.part").mkdir()
    sources.get(source(Way(GOOD), pin=pin))
    assert sorted(path.name for path in (home / "data").iterdir()) == [
        ".letters.lock",
        ".lettersets.alive.part",
        "letters",
    ]


def test_threads_get_a_set_once(pin):
    way, errors = Way(GOOD), []

    def get():
        try:
            sources.ensure(source(way, pin=pin))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and way.asked == 1


def test_processes_get_a_set_once(tmp_path, pin):
    code = f"""
import sys, time
from zoo.data.sources import sources
def way(folder):
    open({str(tmp_path / "asked")!r}, "a").write("x")
    time.sleep(0.3)
    (folder / "a.txt").write_bytes(b"alpha"); (folder / "b.txt").write_bytes(b"beta")
    return folder
way.label = "way"
wanted = lambda path: path if path.endswith(".txt") else None
sources.ensure(sources.Source("letters", wanted, 2, 1000, (way,), "",
                              digest={pin!r}))
"""
    root = str(Path(sources.__file__).parents[2])
    children = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    assert (tmp_path / "asked").read_text() == "x"


def test_a_home_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, pin):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "file"))
    with pytest.raises(ZooError, match=f"{tmp_path}/file/data can't be written"):
        sources.get(source(Way(GOOD), pin=pin))


# The sources that ship


@pytest.mark.parametrize(
    "name, path, wanted",
    [
        (
            "fashion-mnist",
            "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz",
            "train-images-idx3-ubyte",
        ),
        ("fashion-mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"),
        ("fashion-mnist", "usr/share/doc/dataset-fashion-mnist/README.md.gz", None),
        ("emoji", "package/img/twitter/64/1f468-200d-1f33e.png", "twitter/1f468-200d-1f33e.png"),
        ("emoji", "package/emoji.json", "emoji.json"),
        ("emoji", "package/emoji_pretty.json", None),
        ("emoji", "package/img/google/sheets/64.png", None),
        ("emoji", "package/img/google/64/../1f468.png", None),
        ("cifar10", "cifar-10-batches-py/data_batch_5", "cifar-10-batches-py/data_batch_5"),
        ("cifar10", "cifar-10-batches-py/data_batch_6", None),
        ("cifar10", "cifar-10-batches-py/readme.html", None),
        ("cifar100", "x/cifar-100-python/meta", "cifar-100-python/meta"),
        ("stl10", "stl10_binary/unlabeled_X.bin", "stl10_binary/unlabeled_X.bin"),
        (
            "imagenette",
            "imagenette2-160/val/n01440764/n01440764_1.JPEG",
            "imagenette2-160/val/n01440764/n01440764_1.JPEG",
        ),
        ("imagenette", "imagenette2-160/val/n01440764/../x.JPEG", None),
    ],
)
def test_files_are_known_by_their_names(name, path, wanted):
    assert SOURCES[name].wanted(path) == wanted


def test_every_source_is_pinned():
    for name, known in SOURCES.items():
        assert known.name == name and known.ways and known.advice
        pins = [known.digest, known.archive and known.archive[1]]
        assert [len(sha) for sha in pins if sha] == [64]


def test_files_that_are_not_cifar10_are_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / file).write_bytes(b"not it")
    with pytest.raises(ZooError, match="aren't those of cifar10 .*: they are damaged or of another version"):
        sources.get(SOURCES["cifar10"], tmp_path)


@pytest.mark.parametrize("name", ["cifar100", "stl10", "imagenette"])
def test_an_archive_that_is_not_known_is_refused(tmp_path, name):
    archive = SOURCES[name].archive[0]
    (tmp_path / archive).write_bytes(b"not it")
    for given in (tmp_path / archive, tmp_path):
        with pytest.raises(
            ZooError, match=f"{archive} isn't the {archive} that is known .*: it is damaged or of another"
        ):
            sources.get(SOURCES[name], given)


@pytest.mark.parametrize(
    "name, file",
    [
        ("cifar100", "cifar-100-python/train"),
        ("stl10", "stl10_binary/train_X.bin"),
        ("imagenette", "imagenette2-160/val/n01440764/n01440764_1.JPEG"),
    ],
)
def test_unpacked_files_of_an_archive_are_refused_since_nothing_could_check_them(tmp_path, name, file):
    path = tmp_path / "given" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"anything")
    one = replace(SOURCES[name], count=1)
    for given in (tmp_path / "given", tmp_path / "given" / file.split("/")[0]):
        with pytest.raises(ZooError, match=f"holds no {one.archive[0]}; .* give that instead of unpacked files"):
            sources.get(one, given)
    with pytest.raises(ZooError, match="neither a file nor a folder"):
        sources.get(one, tmp_path / "nothing")
