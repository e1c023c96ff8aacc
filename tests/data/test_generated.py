"""Generated samples of every kind: shapes and types as the kinds say, and labels that are true."""

from dataclasses import replace

import torch

from zoo.data.datasets import data_info
from zoo.data.generated import generate
from zoo.data.info import DataInfo
from zoo.fields import Audio, Frames, Image, Label, Number, Text, Tokens

KINDS = {
    "label": Label(("a", "b", "c")),
    "text": Text(16),
    "ids": Tokens(12, 50, 3),
    "sound": Audio(4000, 0.25),
    "film": Frames(4, 3, 8, 12, 2.0),
    "picture": Image(1, 24, 8),
    "age": Number(),
}
INFO = DataInfo("all", kinds=KINDS)


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_every_kind_has_its_shape_and_type():
    made = generate(INFO, images=24)
    fields = made.fields
    assert list(fields) == list(KINDS) and made.info.kinds == KINDS
    assert [len(rows) for rows in made.splits.values()] == [12, 6, 6]
    assert all(len(values) == 24 for values in fields.values())
    assert (fields["picture"].dtype, fields["picture"].shape[1:]) == (torch.uint8, (1, 24, 8))
    assert (fields["film"].dtype, fields["film"].shape[1:]) == (torch.uint8, (4, 3, 8, 12))
    assert (fields["sound"].dtype, fields["sound"].shape[1:]) == (torch.float32, (1000,))
    assert fields["sound"].abs().max() <= 1
    assert (fields["ids"].dtype, fields["ids"].shape[1:]) == (torch.int64, (12,))
    assert 0 <= fields["ids"].min() and fields["ids"].max() < 50 and (fields["ids"] == 3).any()
    assert all(isinstance(text, str) for text in fields["text"])


def test_samples_follow_from_the_seed():
    assert same(generate(INFO, images=24).fields, generate(INFO, images=24).fields)
    assert not same(generate(INFO, images=24).fields, generate(INFO, images=24, seed=1).fields)


def test_each_field_tells_the_classes_apart():
    fields = generate(INFO, images=120).fields
    label = fields["label"]
    assert all(f"class {k}" in text for text, k in zip(fields["text"], label.tolist(), strict=True))
    pitch = torch.fft.rfft(fields["sound"]).abs().argmax(1)
    centres = torch.stack([pitch[label == k].float().mean() for k in range(3)])
    assert ((pitch[:, None] - centres).abs().argmin(1) == label).float().mean() > 0.95
    often = torch.stack([(fields["ids"] == word).float().mean(1) for word in (0, 1, 2)], 1)
    assert (often.argmax(1) == label).float().mean() > 0.9
    film = fields["film"].float().mean(2)
    assert (film[:, 0] - film[:, 1]).abs().mean() > 1  # it moves


def test_sizes_may_be_rectangles():
    made = generate(data_info("cifar10"), size=[16, 8], images=8)
    assert made.fields["image"].shape == (8, 3, 16, 8) and made.info.size == (16, 8)
    square = generate(data_info("cifar10"), size=16, images=8)
    assert square.fingerprint == "generated-0-8-16" != made.fingerprint


def test_a_set_without_images_has_none():
    made = generate(replace(INFO, fields=("text", "label")), images=8)
    assert list(made.fields) == ["text", "label"] and made.info.size == 0
    words = generate(DataInfo("words", kinds={"text": Text()}), images=8)
    assert list(words.fields) == ["text"] and words.info.size == 0
