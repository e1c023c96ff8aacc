"""Shards: the same samples as the folder they were made of, in an order that covers everything once, resumes exactly,
and names what is broken.
"""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from shards_example import folder, home, numbers, png, refused, shard, tar  # noqa: F401

from zoo.data import order
from zoo.data.datasets import data_info, load_data
from zoo.data.module import ZooData, create_data
from zoo.data.order import Batches, in_windows
from zoo.data.shards.writer import write_shards
from zoo.errors import ZooError

# ---- what a sample holds -------------------------------------------------------------------------


def test_fields_and_splits_are_those_of_the_members(folder):
    data = load_data(f"shards:{folder}", size=4)
    assert data.info.fields == ("image", "label", "text") and data.info.classes == ("0", "1", "2")
    assert (
        data.info.splits
        == {"train": 100, "validation": 12, "test": 8}
        == {name: len(rows) for name, rows in data.splits.items()}
    )
    for split, wanted in (("train", range(100)), ("validation", range(100, 112)), ("test", range(112, 120))):
        rows = data.splits[split]
        images = data.fields["image"][rows]
        assert images.shape == (len(rows), 3, 4, 4) and images.dtype == torch.uint8
        assert numbers(images) == list(wanted)
        assert data.fields["label"][rows].tolist() == [n % 3 for n in wanted]
        assert [data.fields["text"][row] for row in rows.tolist()] == [f"picture {n} é" for n in wanted]
    assert data_info(f"shards:{folder}").splits == data.info.splits


def test_a_pattern_names_shards_and_json_holds_fields(tmp_path):
    members = {}
    for n in range(40):
        members |= {
            f"a/{n}.seg.png": png(n),
            f"a/{n}.json": json.dumps({"label": n % 2, "text": str(n), "author": {"x": [1]}}).encode(),
            f"a/{n}.npy": b"not ours",
        }
    tar(tmp_path / "some" / "x-1.tar", members)
    tar(tmp_path / "some" / "y-1.tar", {"0.txt": b"no picture"})
    data = load_data(f"shards:{tmp_path}/some/x-*.tar", size=4)
    found = sorted(torch.cat(list(data.splits.values())).tolist())
    assert found == list(range(40)) and all(len(rows) for rows in data.splits.values())
    assert data.fields["label"].tolist() == [n % 2 for n in range(40)] and data.fields["text"][39] == "39"


def test_pictures_are_made_as_a_folder_makes_them(tmp_path):
    for n in range(30):
        path = tmp_path / "pictures" / "ab"[n % 2] / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (40, 30, 3), np.uint8)).save(path)
    out = write_shards(tmp_path / "pictures", tmp_path / "out", per_shard=7)
    assert {"classes.txt", "train-000000.tar", "train-000002.tar", "val-000000.tar", "test-000000.tar"} <= {
        p.name for p in out.iterdir()
    }
    ours, theirs = load_data(f"shards:{out}", size=16), load_data(f"folder:{tmp_path / 'pictures'}", size=16)
    assert ours.info.classes == theirs.info.classes == ("a", "b") and ours.info.splits == theirs.info.splits
    for split in theirs.splits:
        found, wanted = (
            {
                (d.fields["image"][row].numpy().tobytes(), int(d.fields["label"][row]))
                for row in d.splits[split].tolist()
            }
            for d in (ours, theirs)
        )
        assert found == wanted
    again = write_shards(tmp_path / "pictures", tmp_path / "again", per_shard=7)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in out.iterdir()}


def test_the_index_follows_the_shards(folder):
    before = load_data(f"shards:{folder}", size=4)
    assert (
        load_data(f"shards:{folder}", size=4).fingerprint
        == before.fingerprint
        != load_data(f"shards:{folder}", size=8).fingerprint
    )
    shard(folder / "train-3.tar", 120, 5)
    after = load_data(f"shards:{folder}", size=4)
    assert after.info.splits["train"] == 105 and after.fingerprint != before.fingerprint
    assert numbers(after.fields["image"][after.splits["train"][-5:]]) == list(range(120, 125))


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [64, 1000, 1030])
def test_the_parts_of_the_processes_are_disjoint_and_complete(monkeypatch, world, count):
    monkeypatch.setattr(order, "BLOCK", 16)
    monkeypatch.setattr(order, "WINDOW", 100)
    rows = torch.arange(count) * 2 + 1
    parts = [[batch.tolist() for batch in in_windows(rows, (0, 0), 8, rank, world)] for rank in range(world)]
    assert {len(part) for part in parts} == {count // (8 * world)} and all(
        len(batch) == 8 for part in parts for batch in part
    )
    seen = [row for part in parts for batch in part for row in batch]
    assert len(set(seen)) == len(seen) and set(seen) <= set(rows.tolist()) and count - len(seen) < 8 * world


def test_the_order_is_a_function_of_seed_and_epoch_and_mixes(monkeypatch):
    monkeypatch.setattr(order, "BLOCK", 16)
    monkeypatch.setattr(order, "WINDOW", 128)
    rows = torch.arange(1000)
    first, again, epoch, seed = (
        torch.cat(list(in_windows(rows, s, 10, 0, 1))).tolist() for s in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again and first != epoch and first != seed and sorted(first) == sorted(epoch) == list(range(1000))
    assert len({row // 16 for row in first[:60]}) >= 6  # neighbours in a batch come from many blocks
    assert len({row // 16 for row in first[:120]}) <= 9  # and a window reads few


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 24, 30, 31])
def test_any_batch_is_reached_without_those_before_it(monkeypatch, start):
    monkeypatch.setattr(order, "WINDOW", 96)
    whole = [batch.tolist() for batch in in_windows(torch.arange(500), (3, 1), 8, 1, 2)]
    assert [batch.tolist() for batch in in_windows(torch.arange(500), (3, 1), 8, 1, 2, start)] == whole[start:]


def test_batches_of_two_processes_share_nothing(folder):
    data = load_data(f"shards:{folder}", size=4)
    seen = []
    for rank in (0, 1):
        progress = SimpleNamespace(total=SimpleNamespace(completed=0), current=SimpleNamespace(ready=0))
        trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            num_training_batches=6,
            overfit_batches=0,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        )
        batches = list(Batches(data.fields, data.splits["train"], 8, trainer, 0, training=True))
        assert len(batches) == 6
        for batch in batches:
            wanted = [row - 8 for row in batch["index"].tolist()]  # the shard test-0 comes first
            assert numbers(batch["image"]) == wanted and batch["text"] == [f"picture {n} é" for n in wanted]
            assert batch["label"].tolist() == [n % 3 for n in wanted]
        seen += [row for batch in batches for row in batch["index"].tolist()]
    assert len(set(seen)) == len(seen) == 96


class Learner(L.LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(48, 3)
        self.seen = []

    def training_step(self, batch, number):
        self.seen.append(batch["index"].tolist())
        return torch.nn.functional.cross_entropy(self.layer(batch["image"].flatten(1) / 255), batch["label"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.parametrize("step", [4, 10, 13])
def test_a_run_resumed_in_the_middle_is_the_undisturbed_one(folder, tmp_path, monkeypatch, step):
    """Ten batches are an epoch."""
    monkeypatch.setattr(order, "WINDOW", 40)

    def run(steps: int, state: Path | None = None, save: Path | None = None) -> Learner:
        task, data = Learner(), create_data(f"shards:{folder}", batch_size=10, size=4)
        keep = (
            [
                ModelCheckpoint(
                    dirpath=save,
                    filename="s{step}",
                    auto_insert_metric_name=False,
                    every_n_train_steps=step,
                    save_top_k=-1,
                )
            ]
            if save
            else []
        )
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=bool(keep),
            callbacks=keep,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        trainer.fit(task, data, ckpt_path=state, weights_only=True)
        return task

    whole = run(25, save=tmp_path / "states")
    rest = run(25, state=tmp_path / "states" / f"s{step}.ckpt")
    assert rest.seen == whole.seen[step:] and len(whole.seen) == 25 and whole.seen[:10] != whole.seen[10:20]
    assert all(torch.equal(a, b) for a, b in zip(rest.state_dict().values(), whole.state_dict().values(), strict=True))


def test_what_isnt_training_goes_in_order_and_closes_early(folder):
    data = ZooData(load_data(f"shards:{folder}", size=4), batch_size=7)
    assert [row for batch in data.batches("test") for row in batch["index"].tolist()] == data.dataset.splits[
        "test"
    ].tolist()
    only = next(data.batches("validation", fields=("label",)))
    assert set(only) == {"label", "index"}
    some = data.batches("train", batch_size=5)
    next(some)
    some.close()


# ---- what can be wrong ---------------------------------------------------------------------------


def test_a_shard_cut_anywhere_is_named(folder):
    path = folder / "train-1.tar"
    whole = path.read_bytes()
    end = max(whole.rfind(b"49.txt"), 0) // 512 * 512 + 1024  # of the last member
    for length in (0, 100, 512, 700, len(whole) // 2, end - 400, end):
        path.write_bytes(whole[:length])
        assert "train-1.tar is damaged or cut short" in refused(lambda: load_data(f"shards:{folder}"))
    path.write_bytes(whole)
    assert load_data(f"shards:{folder}").info.splits["train"] == 100


def test_a_damaged_header_or_another_format_is_named(folder):
    path = folder / "train-2.tar"
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"00060.png") + 3] ^= 1
    path.write_bytes(whole)
    assert "train-2.tar is damaged" in refused(lambda: load_data(f"shards:{folder}"))
    path.write_bytes(b"PK\x03\x04" * 400)
    assert "train-2.tar is damaged" in refused(lambda: load_data(f"shards:{folder}"))


def test_a_picture_that_cant_be_read_is_named_when_it_is_asked_for(folder):
    path = folder / "train-2.tar"
    whole = bytearray(path.read_bytes())
    place = whole.index(b"\x89PNG", whole.index(b"00060.png"))
    whole[place : place + 4] = b"oops"
    path.write_bytes(whole)
    data = load_data(f"shards:{folder}", size=4)
    assert numbers(data.fields["image"][data.splits["train"][:60]]) == list(range(60))
    said = refused(lambda: list(ZooData(data, 50).batches("train")))
    assert "train-2.tar" in said and f"byte {place:,}" in said and "isn't an image" in said


def test_a_shard_that_shrinks_later_is_named(folder):
    data = load_data(f"shards:{folder}", size=4)
    (folder / "train-2.tar").write_bytes(b"")
    assert "train-2.tar has become shorter" in refused(lambda: data.fields["image"][data.splits["train"]])


@pytest.mark.parametrize(
    "members, said",
    [
        ({"a.png": png(0), "a.cls": b"1", "b.png": png(1)}, "sample b .* has no label"),
        ({"a.png": png(0), "b.png": png(1), "b.txt": b"x"}, "sample b .* has a text"),
        ({"a.png": png(0), "b.cls": b"1"}, "sample b .* has no picture"),
        ({"a.png": png(0), "a.jpg": png(1)}, "sample a .* has two pictures"),
        ({"a.png": png(0), "a.cls": b"three"}, r"a\.cls .* can't be read"),
        ({"a.png": png(0), "a.json": b"[1]"}, r"a\.json .* can't be read"),
        ({"a.png": png(0), "a.json": b'{"label": -1}'}, "label of sample a .* is -1"),
        ({"a.png": png(0), "a.json": b'{"text": 5}'}, "text of sample a .* is 5"),
        ({"a.png": png(0), "a.txt": b"\xff"}, r"a\.txt .* can't be read"),
        ({"a.png": png(0), "a.json": rb'{"text": "\ud83d"}'}, r"a\.json .* can't be read"),
        ({"a.png": png(0)}, "hold 1 pictures"),
        ({"a.npy": b"x"}, "hold 0 pictures"),
    ],
)
def test_samples_that_arent_whole_are_named_with_their_shard(tmp_path, members, said):
    tar(tmp_path / "set" / "odd.tar", members)
    with pytest.raises(ZooError, match=said):
        load_data(f"shards:{tmp_path / 'set'}")


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    shard(tmp_path / "a[1].tar", 0, 30)
    assert load_data(f"shards:{tmp_path / 'a[1].tar'}", size=4).info.splits["train"] > 20


@pytest.mark.parametrize("header", ["a size below nothing", "a map of holes that is none"])
def test_headers_that_lead_nowhere_are_named(tmp_path, header):
    file = shard(tmp_path / "set" / "odd.tar", 0, 30)
    if header.startswith("a size"):
        content = bytearray(file.read_bytes())
        content[124:136] = b"\xff" * 4 + (-512).to_bytes(8, "big", signed=True)
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        file.write_bytes(content)
    else:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"GNU.sparse.map": "a,b", "GNU.sparse.size": "5"}
        with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as made:
            made.addfile(info)
    assert "odd.tar is damaged or cut short" in refused(lambda: load_data(f"shards:{tmp_path / 'set'}"))


def test_places_without_shards(tmp_path, folder):
    (tmp_path / "none").mkdir()
    assert "holds no .tar" in refused(lambda: load_data(f"shards:{tmp_path / 'none'}"))
    tar(tmp_path / "none" / "a.tar.gz", {"a.png": png(0)})
    assert "a.tar.gz is compressed" in refused(lambda: load_data(f"shards:{tmp_path / 'none'}"))
    assert "did you mean set?" in refused(lambda: load_data(f"shards:{tmp_path / 'sett'}"))
    assert "needs a path" in refused(lambda: load_data("shards:"))
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert "names 2 classes and there is a label 2" in refused(lambda: load_data(f"shards:{folder}"))
    (folder / "classes.txt").write_text("cat\ndog\nowl\n")
    assert load_data(f"shards:{folder}").info.classes == ("cat", "dog", "owl")
    (folder / "classes.txt").write_bytes("Kätzchen\n".encode("latin-1"))
    assert "classes.txt can't be read as text in UTF-8" in refused(lambda: load_data(f"shards:{folder}"))
    (folder / "classes.txt").unlink()
    (folder / "link.tar").symlink_to(tmp_path / "gone.tar")
    assert "link.tar is a link to nothing" in refused(lambda: load_data(f"shards:{folder}"))
    (folder / "link.tar").unlink()
    shard(folder / "more.tar", 150, 2)
    assert "more.tar isn't" in refused(lambda: load_data(f"shards:{folder}"))
    assert "data.bad_samples" in refused(lambda: load_data(f"shards:{folder}", bad_samples="skip"))


def test_writing_leaves_nothing_half(tmp_path):
    for n in range(12):
        path = tmp_path / "pictures" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(n))
    (tmp_path / "pictures" / "7.png").write_bytes(b"no picture")
    assert "7.png can't be read" in refused(lambda: write_shards(tmp_path / "pictures", tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert "isn't an empty folder" in refused(lambda: write_shards(tmp_path / "pictures", tmp_path / "out"))
    assert "--per-shard is 0" in refused(lambda: write_shards(tmp_path / "pictures", tmp_path / "else", per_shard=0))


# ---- from end to end -----------------------------------------------------------------------------


def test_shards_are_packed_trained_on_and_measured_by_the_verbs(tmp_path, capsys, monkeypatch):
    from zoo.card import public, read_card
    from zoo.cli import main
    from zoo.evaluate.table import evaluate

    monkeypatch.chdir(tmp_path)
    for n in range(60):
        path = tmp_path / "pictures" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n * 3))
    assert main(["data", "shard", "pictures", "--out", "out", "--per-shard", "16", "--json"]) == 0
    name = json.loads(capsys.readouterr().out)["data"]
    assert name == f"shards:{tmp_path / 'out'}"
    assert main(["info", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fields"] == ["image", "label"]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{name: '{name}', batch_size: 16, size: 32}}\nbackbone: {{name: resnet10t, channels: [8, 8, 8, 8], "
        f"stem_width: 8}}\n"
        "task: {name: simclr, hidden: 8, outputs: 4}\ntrainer: {max_steps: 4, accelerator: cpu, validate_every: 1}\n"
    )
    assert main(["pretrain", str(recipe), "--out", "run", "--no-progress"]) == 0
    card = read_card(tmp_path / "run" / "checkpoint")
    assert card["data"]["name"] == name and card["steps"] == 4 and str(tmp_path) not in json.dumps(public(card))
    rows = evaluate(tmp_path / "run" / "checkpoint", name)
    assert rows
