"""The index of a hub: whatever it holds, it is entries or one sentence."""

from __future__ import annotations

import copy
import json

import pytest
from card_example import a_card
from hypothesis import given, settings
from hypothesis import strategies as st
from test_card import PLAIN

from zoo import card as cards
from zoo.errors import ZooError
from zoo.hub.index import entry_of, index_text, parse_index

TEXT = cards.dump(a_card()).encode()
ENTRIES = {name: entry_of(a_card(name=name), TEXT) for name in ("one", "two")}


def test_what_is_written_is_read_back():
    assert parse_index(index_text(ENTRIES).encode(), "index.json") == ENTRIES


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_an_index_with_anything_anywhere_gives_entries_or_a_zoo_error(data):
    index = {"schema": 1, "checkpoints": copy.deepcopy(ENTRIES)}
    entry = index["checkpoints"]["one"]
    inside = data.draw(st.sampled_from([index, index["checkpoints"], entry, entry["card"]]))
    inside[data.draw(st.sampled_from(sorted(inside)) | st.text(max_size=5))] = data.draw(PLAIN)
    try:
        read = parse_index(json.dumps(index).encode(), "index.json")
    except ZooError as error:
        assert "\n" not in str(error) and "index.json" in str(error)
        return
    assert parse_index(index_text(read).encode(), "index.json") == read  # what is accepted can be written again


@st.composite
def damaged(draw) -> bytes:
    """An index with a few bytes cut out and put in."""
    text = index_text(ENTRIES).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(st.binary(max_size=4) | st.sampled_from([b"{", b"]", b'"', b"9" * 30, b"1e999", b"NaN"]))
            + text[at + draw(st.integers(0, 4)) :]
        )
    return text


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=100) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")) | damaged())
def test_any_bytes_give_entries_or_a_zoo_error(data):
    try:
        assert isinstance(parse_index(data, "index.json"), dict)
    except ZooError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["checkpoints"]["one"].pop("bytes"), "index.json, one lacks bytes"),
        (lambda index: index.update(schema=2), "schema 2.*update"),
        (
            lambda index: index["checkpoints"]["one"]["card"].update(size=1 << 40),
            "one: card has to be the size and sha256",
        ),
    ],
)
def test_what_is_refused_and_why(change, words):
    index = {"schema": 1, "checkpoints": copy.deepcopy(ENTRIES)}
    change(index)
    with pytest.raises(ZooError, match=words):
        parse_index(json.dumps(index).encode(), "index.json")
