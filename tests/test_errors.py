"""No sentence of ours repeats what is secret in an address."""

from __future__ import annotations

import time

import pytest

from zoo.errors import ZooError, bare_address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://me:PW@host/x is neither", "https://host/x is neither"),
        ("there is no recipe 'https://h/x?token=PW', neither", "there is no recipe 'https://h/x', neither"),
        ("https://h/x?token=PW, so", "https://h/x, so"),
        ("(https://PW@h/x#PW)", "(https://h/x)"),
        ("'https://h/x?t=P W' is", "'https://h/x' is"),
        ("['https://me:PW@h', \"ftp://h?PW\"]", "['https://h', \"ftp://h\"]"),
        ("--hub=HTTPS://me:PW@h/", "--hub=HTTPS://h/"),
        ("1s3://me:PW@h", "1s3://h"),
        ("folder:https://me:PW@h/x", "folder:https://h/x"),
        ("folder://me:PW@h/x", "folder://h/x"),
        ("https:/me:PW@h/x", "https:/h/x"),
        ("\u00e9https://me:PW@h", "\u00e9https://h"),
        ("https://me:PW@[::1]:80/x?PW a", "https://[::1]:80/x a"),
        # where the password itself has what divides an address
        ("https://me:P/W@h/x x", "https://... x"),
        ("https://me:12/PW@h x", "https://... x"),
        ("https://me:P@W@h/x", "https://h/x"),
        ("https://me:P?W@h", "https://..."),
        ("https://me:P#W@h", "https://..."),
        ("https://me:PW", "https://..."),
    ],
)
def test_what_is_left_out(text, said):
    assert str(ZooError(text)) == said


@pytest.mark.parametrize(
    "text",
    [
        "hf://org/name@main, and",
        "folder:/srv/me@uni/x?y#z isn't",
        "shards:/srv/a:b@c",
        "http://127.0.0.1:8000: only",
        "see https://x.y/z.",
        "file:///srv/x@y: z",
        "zoo pull a --hub https://h:80/x",
        "12:30 a@b ?x",
        "did you mean a?",
        "",
    ],
)
def test_what_is_left_alone(text):
    assert str(ZooError(text)) == text


@pytest.mark.parametrize("piece", ["a", "a.:", "'a:/", "\"a:/'", ":", "x:/", "@", "a://b@"])
def test_no_text_takes_long(piece):
    start = time.perf_counter()
    ZooError(piece * (60_000 // len(piece))), bare_address(f"https://{piece * 20_000}")
    assert time.perf_counter() - start < 10
