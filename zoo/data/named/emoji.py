"""The emoji set: two artists' pictures of the same code points, with what Unicode says about each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from zoo.errors import ZooError
from zoo.fields import ImageSize

ARTISTS = ("google", "twitter")
SIDE = 64
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
# What may differ between pictures that are one subject: glue, gender and direction signs, hair
GLUE = {"FE0F", "200D", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
# man, woman -> person; boy, girl -> child; old man, old woman -> older person
SAME = {
    "1F468": "1F9D1",
    "1F469": "1F9D1",
    "1F466": "1F9D2",
    "1F467": "1F9D2",
    "1F474": "1F9D3",
    "1F475": "1F9D3",
}


def read_emoji(raw: Path, size: ImageSize, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """7,572 pictures, composited on white; the first half google's, the second twitter's, in the same order.

    Fields: image uint8 (n, 3, 64, 64); label, the category; subcategory, artist int64 (n,); emoji int64 (n,),
    one number per code point sequence, the same for both artists; text, English name, skin tone, keywords.

    Splits: a hash puts each subject whole into train (about 70 %), validation or test (about 15 %
    each). A subject is a base emoji with its skin tones, genders, hair and directions, by both artists, and
    every other emoji of which an artist has the very same picture (the flags of Norway and Svalbard).
    """
    emoji = list_emoji(raw / "emoji.json")
    images = np.stack([decode(raw / artist / one["file"]) for artist in ARTISTS for one in emoji])
    categories = sorted({one["category"] for one in emoji})
    subcategories = sorted({one["subcategory"] for one in emoji})
    fields = {
        "image": images,
        "label": np.array([categories.index(one["category"]) for one in emoji] * 2, np.int64),
        "subcategory": np.array([subcategories.index(one["subcategory"]) for one in emoji] * 2, np.int64),
        "artist": np.repeat(np.arange(2), len(emoji)),
        "emoji": np.tile(np.arange(len(emoji)), 2),
        "text": [one["text"] for one in emoji] * 2,
    }
    chosen = np.array([split_of(subject) for subject in join_subjects([one["subject"] for one in emoji] * 2, images)])
    return fields, {split: np.flatnonzero(chosen == split) for split in ("train", "validation", "test")}


def list_emoji(path: Path) -> list[dict]:
    """Every picture that emoji.json names, in its order: file, category, subcategory, text, subject."""
    found = []
    try:
        for base in json.loads(path.read_text()):
            about = {
                "category": base["category"],
                "subcategory": base["subcategory"],
                "subject": subject_of(base["unified"]),
            }
            found.append({**about, "file": base["image"], "text": describe(base)})
            for tones, other in base.get("skin_variations", {}).items():
                found.append({**about, "file": other["image"], "text": describe(base, tones)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"{path} isn't the table of emoji that was expected ({error!r})") from error
    return found


def describe(base: dict, tones: str = "") -> str:
    """Name, skin tones, and keywords that don't repeat the name: `waving hand sign, dark skin tone, wave`."""
    words = [base["name"].lower()] + [TONES[tone] for tone in dict.fromkeys(filter(None, tones.split("-")))]
    words += [name.replace("_", " ").replace("flag-", "flag ") for name in base["short_names"]]
    return ", ".join(dict.fromkeys(words))


def subject_of(unified: str) -> str:
    """The code points that say what is drawn, without whom: 1F468-200D-1F33E (man farmer) -> 1F9D1-1F33E."""
    points = unified.split("-")
    kept = [
        SAME.get(point, point) for point in points if point not in GLUE and (point not in TONES or len(points) == 1)
    ]
    return "-".join(kept or points)


def join_subjects(subjects: list[str], images: np.ndarray) -> list[str]:
    """One name per image, the same for images that share a subject or every pixel, however long the chain."""
    parent = {subject: subject for subject in subjects}

    def root(subject: str) -> str:
        while parent[subject] != subject:
            subject = parent[subject]
        return subject

    seen: dict[bytes, str] = {}
    for subject, image in zip(subjects, images, strict=True):
        first, second = (
            root(seen.setdefault(hashlib.sha256(image.tobytes()).digest(), subject)),
            root(subject),
        )
        parent[max(first, second)] = min(first, second)
    return [root(subject) for subject in subjects]


def split_of(subject: str) -> str:
    # the 5 picks the draw: of six tried it comes nearest to 70/15/15 in subjects and in pictures alike
    part = int.from_bytes(hashlib.sha256(f"emoji 5 {subject}".encode()).digest()[:8], "big") / 2**64
    return "train" if part < 0.7 else "validation" if part < 0.85 else "test"


def decode(path: Path) -> np.ndarray:
    """A PNG of any mode -> uint8 (3, 64, 64), composited on white in whole numbers: the same everywhere."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGBA")).astype(np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        raise ZooError(f"{path} can't be decoded ({error}); run `zoo data get emoji`") from error
    if pixels.shape[:2] != (SIDE, SIDE):
        raise ZooError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels, not {SIDE}x{SIDE}")
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8).transpose(2, 0, 1)
