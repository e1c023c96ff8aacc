"""Kinds of fields, and how an entry of a data set comes by them."""

import subprocess
import sys
from dataclasses import replace

import pytest

from zoo.data.datasets import list_data
from zoo.data.info import DataInfo, check_size
from zoo.errors import ZooError
from zoo.fields import KINDS, Audio, Frames, Image, Label, Number, Text, Tokens, height_width, tidy_size

OLD = DataInfo("noise", ("image", "label", "artist", "text"), 3, 32, ("a", "b"), "1", "CC0-1.0", "", "", {}, "")


def test_an_entry_of_images_gets_its_kinds():
    assert OLD.kinds == {"image": Image(3, 32, 32), "label": Label(("a", "b")), "artist": Number(), "text": Text()}
    assert OLD.fields_of("image") == ("image",) and OLD.fields_of("audio") == ()
    named = replace(OLD, names={"artist": ("google", "twitter")})
    assert named.kinds["artist"] == Number(("google", "twitter"))


def test_replacing_size_or_classes_changes_the_kinds():
    wide = replace(OLD, size=(128, 32), classes=("c",))
    assert wide.kinds["image"] == Image(3, 128, 32) and wide.size == (128, 32)
    assert wide.kinds["label"] == Label(("c",))
    assert replace(wide, size=(64, 64)).size == 64


def test_an_entry_of_kinds_gets_size_channels_and_classes():
    kinds = {
        "image": Image(1, 128, 32),
        "label": Label(("x", "y")),
        "sound": Audio(8000, 0.5),
        "film": Frames(*[2] * 5),
    }
    info = DataInfo("mixed", kinds=kinds)
    assert info.kinds == kinds
    assert (info.fields, info.channels, info.size, info.classes) == (tuple(kinds), 1, (128, 32), ("x", "y"))
    words = DataInfo("words", kinds={"text": Text(16), "ids": Tokens(8, 100, 0)})
    assert (words.channels, words.size, words.classes) == (0, 0, ())


def test_every_named_set_says_what_each_field_is():
    for info in list_data():
        assert tuple(info.kinds) == info.fields
        assert info.kinds["image"] == Image(info.channels, info.size, info.size)
        assert all(KINDS[kind.kind] is type(kind) for kind in info.kinds.values())


def test_a_sound_has_whole_samples():
    assert Audio(8000, 0.5).samples == 4000 and Audio(1, 0.1).samples == 1


def test_sizes_have_one_way_to_be_written():
    assert height_width(5) == (5, 5) and height_width([2, 3]) == (2, 3)
    assert tidy_size([4, 4]) == 4 and tidy_size([4, 5]) == (4, 5)
    assert check_size([128, 32]) == (128, 32) and check_size([8, 8]) == 8 and check_size(None) is None


@pytest.mark.parametrize(
    "size", [0, -1, True, 2.0, "64", [], [64], [1, 2, 3], [64, 0], [64, True], 1 << 20, [4, 1 << 20]]
)
def test_sizes_that_are_none(size):
    with pytest.raises(ZooError, match=r"^data.size is ") as error:
        check_size(size)
    assert repr(size) in str(error.value) and "\n" not in str(error.value)


def test_kinds_need_no_torch():
    code = "import sys, zoo.fields, zoo.data.info, zoo.data.datasets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
