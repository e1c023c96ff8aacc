"""Texts of people's own: files, lines, tables, and captions beside images; and what is refused."""

import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

import zoo
from zoo.data.datasets import data_info, load_data
from zoo.data.folder.folder import load_folder
from zoo.data.info import Settings
from zoo.errors import ZooError
from zoo.fields import Image as ImageKind
from zoo.fields import Label, Text


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZOO_HOME", str(place))
    return place


def write(root: Path, **files: str | bytes) -> str:
    """Files by name, __ for / and the last _ for the dot; the name of the folder as data."""
    for name, content in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"folder:{root}"


def pictures(root: Path, *names: str) -> None:
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k * 20, 0, 0)).save(path)


# ---- what is read ------------------------------------------------------------------------------------------
def test_a_text_file_is_a_sample_and_folders_are_classes(tmp_path):
    name = write(tmp_path, **{f"{'good' if k % 2 else 'bad'}__{k}_txt": f"film {k}\n" for k in range(8)})
    data = load_data(name, length=12)
    assert data.info.kinds == {"text": Text(12), "label": Label(("bad", "good"))}
    assert data.info == data_info(name, Settings(length=12))
    assert data.fields["text"] == ["film 0", "film 2", "film 4", "film 6", "film 1", "film 3", "film 5", "film 7"]
    assert data.fields["label"].tolist() == [0] * 4 + [1] * 4
    assert sorted(sum((rows.tolist() for rows in data.splits.values()), [])) == list(range(8))
    batch = next(zoo.create_data(name, 4, length=12).batches("train"))
    assert all(isinstance(text, str) for text in batch["text"])


def test_with_lines_each_line_is_a_sample(tmp_path):
    name = write(tmp_path, words_txt="\ufeffone\r\n\ntwo \nthree\ntwo ")
    data = load_data(name, lines=True)
    assert data.fields["text"] == ["one", "two ", "three", "two "]
    assert data.info.splits == data_info(name, Settings(lines=True)).splits
    with pytest.raises(ZooError, match=r"holds no image .*data\.lines"):
        load_data(name)


def test_a_new_line_moves_no_other(tmp_path):
    lines = [f"line {k}" for k in range(100)]
    name = write(tmp_path, a_txt="\n".join([*lines, *lines]))
    before = load_data(name, lines=True)
    split_of = {row: split for split, rows in before.splits.items() for row in rows.tolist()}
    assert all(split_of[row] == split_of[row + 100] for row in range(100))  # equal lines are on one side
    test = {before.fields["text"][row] for row in before.splits["test"].tolist()}
    write(tmp_path, a_txt="\n".join(["new", *lines, *lines]))
    after = load_data(name, lines=True)
    assert test == {after.fields["text"][row] for row in after.splits["test"].tolist()} - {"new"}
    assert after.fingerprint != before.fingerprint and 3 < len(test) < 25


TABLE = [("a, b", "10"), ('say "c"', "9"), ("two\nlines", "9"), ("d", "word")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_has_a_text_and_maybe_a_label(tmp_path, kind):
    import csv
    import io

    out = io.StringIO()
    if kind == "jsonl":
        out.write("\n".join(json.dumps({"id": 1, "caption": text, "label": label}) for text, label in TABLE))
    else:
        writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
        writer.writerows([("id", "caption", "label"), *((1, *row) for row in TABLE)])
    name = write(tmp_path, **{f"set_{kind}": out.getvalue(), "README_txt": "what this is"})
    data = load_data(name)
    assert data.fields["text"] == [text for text, _ in TABLE]
    assert data.info.classes == ("9", "10", "word") and data.fields["label"].tolist() == [1, 0, 0, 2]


def test_tables_may_be_the_splits(tmp_path):
    name = write(tmp_path, train_csv="text\na\nb\n", test_csv="text\nc\n")
    data = load_data(name)
    texts = {name: {data.fields["text"][row] for row in rows.tolist()} for name, rows in data.splits.items()}
    assert texts["test"] == {"c"} and texts["train"] | texts["validation"] == {"a", "b"}
    assert len(texts["train"]) == len(texts["validation"]) == 1
    assert list(data.info.kinds) == ["text"]


def test_captions_lie_beside_images(tmp_path):
    pictures(tmp_path, "x/a.png", "x/b.jpg", "y/c.png")
    plain = load_folder(tmp_path, 8)
    name = write(tmp_path, x__a_txt="an a\n", x__b_txt="", y__c_txt="a c", x__notes_txt="no sample")
    data = load_data(name, 8)
    assert data.info.fields == ("image", "label", "text") and data.info.kinds["image"] == ImageKind(3, 8, 8)
    assert data.fields["text"] == ["an a", "", "a c"] and data.info == data_info(name, Settings(size=8))
    assert (data.fields["image"] == plain.fields["image"]).all() and data.fingerprint != plain.fingerprint
    write(tmp_path, y__c_txt="another c")
    assert load_data(name, 8).fingerprint not in (data.fingerprint, plain.fingerprint)


def test_the_caption_of_a_replaced_image_is_that_of_its_substitute(tmp_path):
    pictures(tmp_path, *(f"{k}.png" for k in range(9)))
    name = write(tmp_path, **{f"{k}_txt": f"caption {k}" for k in range(9)})
    bad = int(load_data(name, 8).splits["train"][0])
    (tmp_path / f"{bad}.png").write_bytes(b"no image")
    replaced = load_data(name, 8, bad_samples="replace", bad_share=0.5)
    other = int(Path(replaced.bad[0]["replaced_by"]).stem)
    assert replaced.fields["text"][bad] == f"caption {other}" and other != bad
    skipped = load_data(name, 8, bad_samples="skip", bad_share=0.5)
    assert skipped.fields["text"] == [f"caption {k}" for k in range(9) if k != bad]


def test_texts_that_belong_to_no_image_change_nothing(tmp_path, home):
    pictures(tmp_path, "a.png", "b.png")
    before, caches = load_folder(tmp_path, 8), sorted(home.rglob("*.npy"))
    write(tmp_path, README_txt="about", table_csv="a,b\n1,2", list_jsonl="{}")
    after = load_folder(tmp_path, 8)
    assert (after.fingerprint, after.info) == (before.fingerprint, before.info)
    assert sorted(home.rglob("*.npy")) == caches and after.info.lacks == {}


def test_a_caption_for_some_images_is_no_field_and_is_said(tmp_path):
    pictures(tmp_path, *(f"{k}.png" for k in range(10)))
    name = write(tmp_path, **{"3_txt": "three"})
    assert load_data(name, 8).info.fields == ("image",)
    assert "1 of its 10" in data_info(name).lacks["text"] and "0.png" in data_info(name).lacks["text"]


# ---- what is refused ---------------------------------------------------------------------------------------
BAD = {
    "only empty files": (dict(a_txt="", b_txt="\n"), {}, "no text at all"),
    "only empty cells": (dict(a_csv="text,label\n,x\n,y\n"), {}, "no text at all"),
    "NUL in a file": (dict(a_txt="a\0b", b_txt="c"), {}, r"a\.txt.*NUL"),
    "NUL in a table": (dict(a_csv="text\na\nb\0\n"), {}, r"a\.csv, line 3.*NUL"),
    "NUL in JSON": (dict(a_jsonl='{"text": "a"}\n{"text": "\\u0000"}'), {}, r"a\.jsonl, line 2.*NUL"),
    "half a character": (dict(a_jsonl='{"text": "a"}\n{"text": "\\ud800"}'), {}, r"line 2.*half a character"),
    "Latin-1": (dict(a_txt="caf\u00e9".encode("latin-1"), b_txt="c"), {}, r"a\.txt.*UTF-8"),
    "Latin-1 in a line": (dict(a_txt=b"one\ncaf\xe9\n"), {"lines": True}, r"a\.txt, line 2.*UTF-8"),
    "UTF-16": (dict(a_csv="text\na\n".encode("utf-16")), {}, r"line 1.*UTF-8"),
    "one line": (dict(a_txt="alone"), {"lines": True}, "1 line.*two"),
    "one row": (dict(a_csv="text\nalone\n"), {}, "1 row.*two"),
    "no column": (dict(a_csv="txet,b\n1,2\n3,4\n"), {}, r"no column text; .* txet, b.*did you mean txet"),
    "two tables": (dict(a_csv="text\na\nb\n", b_csv="text\nc\nd\n"), {}, r"2 tables \(a\.csv, b\.csv\)"),
    "a row too long": (dict(a_csv="text,label\na,b\nc,d,e\n"), {}, "line 3.*3 values.*2"),
    "an open quote": (dict(a_csv='text\n"a\nb\n'), {}, r"a\.csv, line 3"),
    "no JSON": (dict(a_jsonl='{"text": "a"}\n{text: b}\n'), {}, "line 2.*JSON"),
    "a list": (dict(a_jsonl='["a"]\n["b"]\n'), {}, "line 1.*object"),
    "a number": (dict(a_jsonl='{"text": 1}\n{"text": 2}\n'), {}, "line 1.*text is 1"),
    "a missing label": (dict(a_csv="text,label\na,x\nb,\n"), {}, "line 3.*no label"),
    "a nested label": (dict(a_jsonl='{"text": "a", "label": [1]}\n{"text": "b"}'), {}, "line 1.*label"),
    "length": (dict(a_txt="a", b_txt="b"), {"length": 0}, r"data\.length is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence_for(case, tmp_path, home):
    files, options, said = BAD[case]
    with pytest.raises(ZooError, match=said) as error:
        load_data(write(tmp_path, **files), **options)
    assert "\n" not in str(error.value) and "\0" not in str(error.value)
    assert not list(home.rglob("*"))


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_a_line_of_100_mb_is_refused_in_bounded_memory(kind, tmp_path):
    with open(tmp_path / f"a.{kind}", "wb") as file:
        file.write(b"text\n")
        for _ in range(100):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(ZooError, match=r"line (1|2).*(1,048,576 bytes|JSON)"):
        load_folder(tmp_path, lines=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_quoted_cell_that_never_ends_is_refused_in_bounded_memory(tmp_path):
    with open(tmp_path / "a.csv", "w") as file:
        file.write('text\n"')
        for _ in range(1 << 20):
            file.write("a line of a cell\n")
    tracemalloc.start()
    with pytest.raises(ZooError, match=r"a\.csv, line .*can't be read"):
        load_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_captions_that_are_all_empty_are_refused(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(ZooError, match="no text at all"):
        load_data(write(tmp_path, a_txt="", b_txt=" "), 8)


def test_a_caption_that_is_no_text_is_named(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(ZooError, match=r"b\.txt.*UTF-8"):
        load_data(write(tmp_path, a_txt="a", b_txt=b"\xff\xfe"), 8)
