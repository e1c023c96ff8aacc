"""Tokenizers are learned to the same bytes in every process, read as data alone, and take any text."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import subprocess
import sys
import time

import pytest
import torch

from zoo.backbones.tokenizer import LEARNED, LONGEST, SPECIAL, Tokenizer, learn_tokenizer, read_tokenizer
from zoo.errors import ZooError

tokenizers = pytest.importorskip("tokenizers")

SCRIPT = """
import hashlib, random
from zoo.backbones.tokenizer import LEARNED, learn_tokenizer
draw = random.Random(0)
letters = "abcdefghijklmnopqrstuvwxyz\\u00e4\\u00f6\\u00fc\\u05d0\\u05d1\\u05d2\\u05d3\\u65e5\\u672c"
def word():
    return "".join(draw.choice(letters) for _ in range(draw.randint(1, 8)))
TEXTS = [" ".join(word() for _ in range(8)) for _ in range(300)]
if __name__ == "__main__":
    print([hashlib.sha256(learn_tokenizer(TEXTS, 500, kind).json).hexdigest() for kind in LEARNED])
"""
TEXTS = ["The black cat sat on the mat.", "A black dog, a cat and 2 birds", "Ein schwarzer Käfer", "blackest birds"] * 6
SCRIPTS = {
    "Hebrew": "שלום עולם",
    "Arabic": "مرحبا بالعالم",
    "Japanese": "日本語のテキスト",
    "Chinese": "你好世界",
    "Korean": "안녕하세요 세계",
    "Hindi": "नमस्ते दुनिया",
    "Thai": "สวัสดีชาวโลก",
    "emoji": "😀 🏳️‍🌈",
}


def test_the_same_texts_give_the_same_bytes_in_every_process():
    """The library's own trainer of wordpiece doesn't: it numbers characters in the order of a hash."""
    found = {
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(found) == 1 and len(set(json.loads(found.pop().replace("'", '"')))) == len(LEARNED)


@pytest.mark.parametrize("kind", LEARNED)
def test_what_is_learned(kind):
    tokenizer = learn_tokenizer(TEXTS, 320, kind)
    assert tokenizer.kind == kind and tokenizer.size <= 320
    assert [tokenizer.id(role) for role in ("pad", "unk", "cls", "sep", "mask")] == tokenizer.special_ids == [*range(5)]
    ids, attended = tokenizer.encode(["the black cat", "", " ", "the black cat sat on the mat and the dog"], 8)
    assert ids.dtype == attended.dtype == torch.int64 and ids.shape == attended.shape == (4, 8)
    assert ids[:, 0].tolist() == [2] * 4 and ids[1].tolist() == [2, 3, 0, 0, 0, 0, 0, 0]
    assert torch.equal(attended, (ids != 0).long()) and int(ids[3, -1]) == 3
    assert tokenizer.decode(ids[0]).strip() == "the black cat"
    assert not (set(ids[0].tolist()) & {1})


def test_it_is_a_function_of_texts_size_and_kind():
    made = learn_tokenizer(TEXTS, 320)
    assert learn_tokenizer(TEXTS, 320) == made != learn_tokenizer(TEXTS, 60)
    assert learn_tokenizer(TEXTS, 60).size == 60
    assert len({hashlib.sha256(learn_tokenizer(TEXTS, 320, kind).json).digest() for kind in LEARNED}) == 3


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", LEARNED)
def test_every_script_is_learned_and_read_back(script, kind):
    text = SCRIPTS[script]
    tokenizer = learn_tokenizer([text, "and English"] * 8, 400, kind)
    ids, _ = tokenizer.encode([text], 64)
    assert 1 not in ids[0].tolist()
    assert tokenizer.decode(ids[0]).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("kind", LEARNED)
def test_null_characters_and_halves_of_characters_are_read(kind):
    tokenizer = learn_tokenizer([*TEXTS, "a\0b \ud800 c"], 320, kind)
    ids, attended = tokenizer.encode(["black\0cat", "\0", "\ud83d", "black cat"], 8)
    assert attended.sum(1).min() >= 2
    if kind != "bpe":  # which reads bytes, and the others leave controls out
        assert torch.equal(ids[1], tokenizer.encode([""], 8)[0][0])


@pytest.mark.parametrize("kind", LEARNED)
def test_a_line_of_100_megabytes_costs_no_more_than_its_beginning(kind):
    import resource

    line, before, begun = (
        "black cat " * 10_000_000,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.monotonic(),
    )
    tokenizer = learn_tokenizer([line, *TEXTS], 300, kind)
    ids, _ = tokenizer.encode([line, "x" * 100_000_000], 16)
    assert time.monotonic() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000  # KiB, the lines themselves among them
    assert tokenizer == learn_tokenizer([line[:LONGEST], *TEXTS], 300, kind)
    assert torch.equal(ids[0], tokenizer.encode([line[:200]], 16)[0][0])


def test_texts_without_text_are_refused():
    for texts in ([], [""], ["", " \n\t"]):
        with pytest.raises(ZooError, match=f"{len(texts)} texts hold no text"):
            learn_tokenizer(texts, 100)
    with pytest.raises(ZooError, match="text 1 of the batch is a NoneType"):
        learn_tokenizer(["a", None], 100)


@pytest.mark.parametrize(
    "vocabulary, kind, said",
    [(5, "wordpiece", "backbone.vocabulary is 5; .*6"), (260, "bpe", "is 260; .*261"), (50, "word", "'word'.*words")],
)
def test_what_cannot_be_learned(vocabulary, kind, said):
    with pytest.raises(ZooError, match=said):
        learn_tokenizer(TEXTS, vocabulary, kind)


def test_a_small_vocabulary_holds_the_most_frequent():
    tokenizer = learn_tokenizer(["b b b b a a a c c d"], 8, "words")
    ids, _ = tokenizer.encode(["a b c d"], 6)
    assert tokenizer.size == 8 and ids[0].tolist() == [2, 6, 5, 7, 1, 3]


def test_a_given_file_is_kept_to_the_byte_whatever_it_says_of_length_and_padding(tmp_path):
    learned = json.loads(learn_tokenizer(TEXTS, 100).json)
    learned["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    data = json.dumps(learned).encode()
    (tmp_path / "tokenizer.json").write_bytes(data)
    given = read_tokenizer(tmp_path / "tokenizer.json")
    assert given.json == data
    ids, _ = given.encode(TEXTS[:1], 12)
    assert torch.equal(ids, learn_tokenizer(TEXTS, 100).encode(TEXTS[:1], 12)[0])


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b"{" * 100_000, b'{"model": {"type": "WordPiece", "vocab": {}}}']
)
def test_bytes_that_are_no_tokenizer(data):
    with pytest.raises(ZooError, match="here.json is"):
        Tokenizer(data, "here.json")


def test_a_file_that_is_too_large_or_missing(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ZooError, match="67,108,865 bytes"):
        read_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ZooError, match="tokenizer .*nothing.json can't be read"):
        read_tokenizer(tmp_path / "nothing.json")
    with pytest.raises(ZooError, match="can't be read"):
        read_tokenizer(tmp_path)


def test_it_is_never_changed_so_copies_are_the_same():
    tokenizer = learn_tokenizer(TEXTS, 100)
    assert copy.deepcopy(tokenizer) is tokenizer and pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    assert tokenizer.special == dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
