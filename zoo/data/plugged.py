"""Data sets of other packages, by the entry-point group `zoo.data`.

An entry point names an object with two attributes:

    info        the set's `DataInfo`; its name is the entry point's
    load(size)  the set as a `Dataset`, its images of `size` (a side in pixels, or (height, width))

Nothing is imported until a set is named. What a package gives is checked against its own `info`, so that a wrong set is
refused in one sentence instead of training on wrong rows. Importing this imports no torch.
"""

from __future__ import annotations

from typing import Any

from zoo import plugins
from zoo.data.columns import Column
from zoo.data.dataset import Dataset
from zoo.data.info import DataInfo
from zoo.data.named.catalogue import ENTRIES
from zoo.errors import ZooError
from zoo.fields import Audio, Frames, Image, Kind, Label, Text, Tokens, height_width
from zoo.plugins import Plugin

SPLITS = ("train", "validation", "test")


def installed() -> list[Plugin]:
    """Data sets of other packages, by name, importing none."""
    return plugins.installed(plugins.DATA, ENTRIES)


def notices() -> list[str]:
    """Sentences about installed data sets that aren't listed."""
    return plugins.notices(plugins.DATA, ENTRIES)


def find(name: Any) -> Plugin | None:
    """The data set of another package under that name, not imported; None where there is none."""
    if not isinstance(name, str) or name in ENTRIES:
        return None
    return next((plugin for plugin in installed() if plugin.name == name), None)


def plugged_info(plugin: Plugin) -> DataInfo:
    """The entry of a set. Raises ZooError, naming the distribution, for a package that can't be imported and an entry
    that can't be used.
    """
    return _opened(plugin)[1]


def load_plugged(plugin: Plugin, size: int | tuple[int, int] | None = None) -> Dataset:
    """The set itself, with images of `size`; None is the set's own. Raises ZooError, naming the distribution, for
    whatever its package raises, and for a set that isn't what its entry says.
    """
    thing, info = _opened(plugin)
    size = size or info.size or None
    with plugins.blaming(plugin, "can't be loaded"):
        dataset = thing.load(size)
    if not isinstance(dataset, Dataset):
        raise plugins.unfit(plugin, f"its load gave a {type(dataset).__name__} instead of a zoo.data.dataset.Dataset")
    if why := _entry_differs(info, dataset, size) or _splits_differ(info, dataset) or _columns_differ(dataset):
        raise plugins.unfit(plugin, why)
    return dataset


# ---- the entry -----------------------------------------------------------------------------------


def _opened(plugin: Plugin) -> tuple[Any, DataInfo]:
    thing = plugins.load(plugin)
    with plugins.blaming(plugin, "can't be described"):
        info, load = getattr(thing, "info", None), getattr(thing, "load", None)
    if not isinstance(info, DataInfo):
        raise plugins.unfit(plugin, f"{plugin.target} has no info, a zoo.data.info.DataInfo")
    if not callable(load):
        raise plugins.unfit(plugin, f"{plugin.target} has no function load(size)")
    if why := _info_fault(plugin.name, info):
        raise plugins.unfit(plugin, why)
    return thing, info


def _info_fault(name: str, info: DataInfo) -> str | None:
    if info.name != name:
        return f"its info is called {info.name!r}; give the entry point and the info the same name"
    if not info.fields:
        return "its info names no fields"
    for key in ("version", "license", "attribution", "homepage", "summary"):
        if not isinstance(getattr(info, key), str):
            return f"its info.{key} is {getattr(info, key)!r}; it is a text"
    if sorted(info.splits) != sorted(SPLITS):
        return f"its info.splits has {', '.join(map(str, info.splits)) or 'nothing'}; it has {', '.join(SPLITS)}"
    for split, count in info.splits.items():
        least = 1 if split == "train" else 0
        if type(count) is not int or count < least:
            return f"its info.splits[{split!r}] is {count!r}; it is a number of samples, at least {least}"
    for field, kind in info.kinds.items():
        if isinstance(kind, Label) and not kind.classes:
            return f"its info has the field {field!r} and no classes; name them in the order of the labels"
        if isinstance(kind, Image) and not (kind.channels in (1, 3) and kind.height > 0 and kind.width > 0):
            return f"its images are said to be {kind.channels} x {kind.height} x {kind.width}; channels are 1 or 3"
    return None


# ---- the set itself ------------------------------------------------------------------------------


def _entry_differs(info: DataInfo, dataset: Dataset, size: int | tuple[int, int] | None) -> str | None:
    found = dataset.info
    if not isinstance(found, DataInfo):
        return f"the info of the set that it loads is a {type(found).__name__}, not a DataInfo"
    for key in ("name", "version", "classes", "channels", "splits"):
        if getattr(found, key) != getattr(info, key):
            return f"it says {key} {getattr(info, key)} and loads a set of {key} {getattr(found, key)}"
    if size is not None and found.size and found.size != size:
        return f"it was asked for images of {size} pixels and loads images of {found.size}"
    if set(dataset.fields) != set(info.fields) or set(found.fields) != set(info.fields):
        return f"it says fields {', '.join(info.fields)} and loads {', '.join(map(str, dataset.fields))}"
    if not isinstance(dataset.fingerprint, str) or not dataset.fingerprint:
        return f"its fingerprint is {dataset.fingerprint!r}; it is the sha256 of what was read, as hexadecimal digits"
    return None


def _splits_differ(info: DataInfo, dataset: Dataset) -> str | None:
    import torch

    rows = None
    for field, column in dataset.fields.items():
        if not isinstance(column, (torch.Tensor, list, Column)):
            return f"its field {field!r} is a {type(column).__name__}; it is a tensor, a list of texts or a Column"
        count = len(column)
        if rows is not None and count != rows[1]:
            return f"its field {field!r} has {count} rows and {rows[0]!r} has {rows[1]}"
        rows = rows or (field, count)
    for split, count in info.splits.items():
        index = dataset.splits.get(split)
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            return f"its split {split!r} is no int64 tensor of rows"
        if len(index) != count:
            return f"its split {split!r} has {len(index)} rows and its info says {count}"
        if count and not (0 <= int(index.min()) and int(index.max()) < rows[1]):
            return f"its split {split!r} names row {int(index.max())}, and its fields have {rows[1]} rows"
    return None


def _columns_differ(dataset: Dataset) -> str | None:
    """Checks what lies in memory; the values of a `Column` are read only when they are needed."""
    for field, kind in dataset.info.kinds.items():
        column = dataset.fields[field]
        if not isinstance(column, Column) and (why := _column_fault(column, kind)):
            return f"its field {field!r} {why}"
    return None


def _column_fault(column: Any, kind: Kind) -> str | None:
    import torch

    if isinstance(kind, Text):
        texts = isinstance(column, list) and all(isinstance(text, str) for text in column)
        return None if texts else "is not a list of texts"
    if not isinstance(column, torch.Tensor):
        return f"is a {type(column).__name__} instead of a tensor"
    shape, dtype, values = _wanted(kind)
    if tuple(column.shape[1:]) != shape or column.dtype != dtype:
        wanted = f"{str(dtype).removeprefix('torch.')} {('n', *shape)}".replace("'", "")
        return f"is {str(column.dtype).removeprefix('torch.')} {tuple(column.shape)} where {wanted} is right"
    if values is not None and len(column) and not (0 <= int(column.min()) and int(column.max()) < values):
        odd = int(column.min()) if column.min() < 0 else int(column.max())
        return f"holds the value {odd}; its values are 0 to {values - 1}"
    return None


def _wanted(kind: Kind) -> tuple[tuple[int, ...], Any, int | None]:
    """Shape of a row, dtype, and how many values there are, where that is known."""
    import torch

    if isinstance(kind, Image):
        return (kind.channels, *height_width(kind.size)), torch.uint8, None
    if isinstance(kind, Label):
        return (), torch.int64, len(kind.classes)
    if isinstance(kind, Tokens):
        return (kind.length,), torch.int64, kind.vocabulary
    if isinstance(kind, Audio):
        return (kind.samples,), torch.float32, None
    if isinstance(kind, Frames):
        return (kind.frames, kind.channels, kind.height, kind.width), torch.uint8, None
    return (), torch.int64, len(kind.names) or None


def refused_getting(plugin: Plugin) -> ZooError:
    """Why `zoo data get` can't get a set of another package."""
    return ZooError(f"{plugin.name} comes with {plugin.origin}, which gets it itself when it is loaded")
