"""Names of backbones, read from the sources of the libraries that hold them. Imports the standard library alone."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import importlib.util
import re
from pathlib import Path


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of timm's models that match a shell pattern, as `timm.list_models()` gives them, read from timm's
    sources.
    """
    return fnmatch.filter(_timm_models(), pattern)


@functools.cache
def _timm_models() -> list[str]:
    spec = importlib.util.find_spec("timm")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    pattern = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
    names = {name for path in folder.glob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))}
    return sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
    )
