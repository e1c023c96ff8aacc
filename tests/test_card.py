from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from card_example import METRIC, a_card, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import card as cards
from zoo.errors import ZooError
from zoo.hub import page

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def refused(text: str | bytes, words: str) -> None:
    with pytest.raises(ZooError, match=words) as caught:
        cards.parse(text, "zoo.json")
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back():
    card = a_card()
    assert cards.parse(cards.dump(card), "zoo.json") == card
    assert cards.parse(cards.dump(card).encode(), "zoo.json") == card


def test_equal_cards_give_equal_text():
    assert cards.dump(a_card()) == cards.dump(copy.deepcopy(a_card()))


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_any_json_gives_a_dict_or_a_zoo_error(value):
    with pytest.raises(ZooError):
        cards.parse(json.dumps(value), "zoo.json")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_card_with_anything_anywhere_gives_a_dict_or_a_zoo_error(data):
    card = a_card(files=[cards.entry_for("model.safetensors", b"x")])
    inside = data.draw(
        st.sampled_from(
            [card, card["data"], card["task"], card["check"], card["metrics"][0], card["files"][0], card["machine"]]
        )
    )
    key = data.draw(st.sampled_from(sorted(inside)) | st.text(max_size=5))
    inside[key] = data.draw(PLAIN)
    try:
        read = cards.parse(json.dumps(card), "zoo.json")
    except ZooError:
        return
    assert cards.parse(cards.dump(read), "zoo.json") == read  # what is accepted can be written again
    page.render(read).encode()  # and shown


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.binary(max_size=8).map(lambda middle: cards.dump(a_card()).encode()[:300] + middle + b'"}')
)
def test_any_bytes_give_a_zoo_error(data):
    with pytest.raises(ZooError):
        cards.parse(data, "zoo.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "valid JSON|nested"),
        (json.dumps(a_card() | {"task": {"name": "x", "a": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}}), "nested deeper"),
        (cards.dump(a_card()).replace('"seed": 0', '"seed": 0, "seed": 1', 1), "'seed' is given twice"),
        (cards.dump(a_card()).replace('"steps": 10', '"steps": NaN'), "NaN"),
        (cards.dump(a_card()).replace('"steps": 10', '"steps": 1e999'), "finite"),
        (cards.dump(a_card()).replace('"steps": 10', '"steps": ' + "9" * 40), "too large"),
        (cards.dump(a_card()).replace('"steps": 10', '"steps": ' + "9" * 5000), "too large"),
        (cards.dump(a_card()).replace('"steps": 10', '"steps": -1'), "below 0"),
        (cards.dump(a_card()).replace('"steps": 10', '"steps": true'), "steps has to be int"),
        (json.dumps(a_card(summary="\ud800")), "control characters"),
        (json.dumps(a_card(summary="\x1b[2J")), "control characters"),
        (json.dumps(a_card(name="../x")), "can't name a checkpoint"),
        (json.dumps(a_card(name="Upper")), "can't name a checkpoint"),
        (json.dumps(a_card(schema=2, news=1)), "news"),
        (json.dumps(a_card(schema=0)), "schema 0"),
        (json.dumps(a_card(licence="MIT")), "'licence' is not a field here; did you mean license"),
        (json.dumps({key: value for key, value in a_card().items() if key != "seed"}), "lacks seed"),
        (json.dumps(a_card(license="")), "SPDX"),
        (json.dumps(a_card(created="today")), "date"),
        (json.dumps(a_card(task={})), "task has to be a name"),
        (json.dumps(a_card(backbone={"name": "test_resnet", "size": 3})), "without size"),
        (json.dumps(a_card(metrics=[METRIC | {"protocol": "kn"}])), "'kn' is not a protocol; did you mean knn"),
        (json.dumps(a_card(metrics=[METRIC | {"labels": 0.0}])), "labels is 0.0"),
        (json.dumps(a_card(metrics=[METRIC | {"labels": 1.5}])), "labels is 1.5"),
        (b"\xff\xfe" + json.dumps(a_card()).encode("utf-16-le"), "not valid JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "larger than 1024 KiB"),
    ],
)
def test_what_is_refused_and_why(text, words):
    refused(text, words)


@pytest.mark.parametrize(
    "path",
    [
        "../model.safetensors",
        "/etc/passwd.json",
        "a/b.json",
        "a\\b.json",
        "C:\\x.json",
        "x.json\0",
        "x.json\n",
        "",
        ".hidden.json",
        "zoo.json",
        "README.md",
        "readme.MD",
        "model.pth",
        "model.pt",
        "model.bin",
        "x.pkl",
        "run.py",
        "last.ckpt",
        "x.png.exe",
        "con:.json",
        "a" * 200 + ".json",
    ],
)
def test_only_plain_names_of_data_files_are_listed(path):
    with pytest.raises(ZooError):
        cards.parse(json.dumps(a_card(files=[{"path": path, "size": 1, "sha256": "0" * 64}])), "zoo.json")


def test_a_file_is_listed_once():
    entries = [cards.entry_for("a.json", b""), cards.entry_for("A.json", b"")]
    refused(json.dumps(a_card(files=entries)), "twice")


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), float("inf"), "\ud800"])
def test_what_is_no_data_is_not_written(value):
    with pytest.raises(ZooError):
        cards.dump(a_card(task={"name": "x", "a": value}))


def test_files_are_checked_before_anybody_reads_them(tmp_path):
    folder = write_folder(tmp_path / "a")
    card = cards.read_card(folder)
    assert cards.read_file(folder, card, "config.json") == b"{}\n"
    model = folder / "model.safetensors"
    whole = model.read_bytes()
    for damaged, words in (
        (whole[:-1], "204,799 bytes where its card says 204,800"),
        (whole + b"x", "204,801 bytes"),
        (b"\xff" + whole[1:], "another sha256"),
        (b"", "0 bytes"),
    ):
        model.write_bytes(damaged)
        with pytest.raises(ZooError, match=words):
            cards.read_card(folder)
        with pytest.raises(ZooError, match=words):
            cards.read_file(folder, card, "model.safetensors")
    model.unlink()
    with pytest.raises(ZooError, match="model.safetensors is missing"):
        cards.read_card(folder)
    with pytest.raises(ZooError, match="has no heads.safetensors among the files"):
        cards.read_file(folder, card, "heads.safetensors")


def test_links_and_pipes_are_not_followed(tmp_path):
    folder = write_folder(tmp_path / "a")
    data = (folder / "config.json").read_bytes()
    (tmp_path / "outside").write_bytes(data)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "outside")
    with pytest.raises(ZooError, match="is a link"):
        cards.read_card(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ZooError, match="not a plain file"):
        cards.read_card(folder)


def test_a_folder_without_a_card_says_so(tmp_path):
    with pytest.raises(ZooError, match="is not a checkpoint: it has no zoo.json"):
        cards.read_card(tmp_path)
    with pytest.raises(ZooError, match="is not a checkpoint"):
        cards.read_card(tmp_path / "nowhere")


def test_the_readme_shows_the_card_and_nothing_it_smuggles_in():
    evil = "<script>alert(1)</script> | [x](javascript:y) `z`\n# heading"
    card = a_card(
        summary=evil,
        metrics=[
            METRIC,
            METRIC | {"labels": 0.01, "value": 80.0, "sd": None},
            METRIC | {"labels": 5, "command": "```\nevil"},
        ],
        files=[cards.entry_for("views.png", b"")],
    )
    text = page.render(card)
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "timm"
    assert "<script>" not in text and "\n# heading" not in text and not re.search(r"(?<!\\)\[x(?<!\\)\]", text)
    assert (
        "| digits | backbone | knn | all | 91.2 | 0.5 | 3 |" in text
        and "| 1 % | 80.0 |  | 3 |" in text
        and "| 5 per class |" in text
    )
    assert "![views](views.png)" in text and "E. Alpaydin" in text and "zoo evaluate runs/a --data digits" in text
    assert text.count("```") == 4  # the two examples and nothing else


def test_no_licence_is_shown_as_none():
    text = page.render(a_card(license=None))
    assert "license:" not in text.split("---")[1] and "none given yet" in text


def test_cards_and_hubs_need_no_torch():
    code = (
        "import sys, zoo.card, zoo.hub.carriers, zoo.hub.hub; print([m for m in ('torch', 'timm', 'huggingface_hub', "
        "'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
