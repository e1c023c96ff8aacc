"""Names of backbones: timm's, read from its sources, and those of other packages. Importing this imports no torch."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from zoo import plugins
from zoo.backbones.architectures import ARCHITECTURES, AUDIO_ARGUMENTS, TEXT_ARGUMENTS
from zoo.plugins import Plugin

AUDIO = ("audio",)  # a timm model behind a log-mel front end


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of backbones that match a shell pattern: timm's models, as `timm.list_models()` gives them, then those that
    read text and audio, then those of other packages.
    """
    return fnmatch.filter([*built_in(), *(plugin.name for plugin in installed())], pattern)


def reads(name: str) -> str:
    """The kind of field that a built-in backbone of that name reads: image, text or audio."""
    return "text" if name in ARCHITECTURES else "audio" if name in AUDIO else "image"


def arguments_of(name: str) -> dict[str, dict[str, Any]]:
    """Keywords of a backbone with their defaults, under `arguments`; nothing for a name of timm's, whose keywords only
    timm knows.
    """
    if reads(name) == "text":
        return {"arguments": TEXT_ARGUMENTS | ARCHITECTURES[name].defaults}
    return {"arguments": dict(AUDIO_ARGUMENTS)} if reads(name) == "audio" else {}


def built_in() -> list[str]:
    """Names that no other package can claim."""
    return [*timm_models(), *ARCHITECTURES, *AUDIO]


def installed() -> list[Plugin]:
    """Backbones of other packages, by name, importing none."""
    return plugins.installed(plugins.BACKBONES, set(built_in()))


def notices() -> list[str]:
    """Sentences about installed backbones that aren't listed."""
    return plugins.notices(plugins.BACKBONES, set(built_in()))


def find_plugged(name: object) -> Plugin | None:
    """The backbone of another package under that name, not imported; None where there is none."""
    if not isinstance(name, str) or name in built_in():
        return None
    return next((plugin for plugin in installed() if plugin.name == name), None)


@functools.cache
def timm_models() -> list[str]:
    """Names of timm's models, read from timm's sources, in timm's order."""
    spec = importlib.util.find_spec("timm")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    pattern = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
    names = {name for path in folder.glob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))}
    return sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
    )
