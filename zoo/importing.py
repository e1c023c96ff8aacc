"""Weights from elsewhere -> a checkpoint of ours: Lightning's .ckpt files, plain state dicts, safetensors.

Read as data alone: torch's restricted unpickler or safetensors, with nothing to fall back to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import card as cards
from zoo.backbones import create_backbone
from zoo.checkpoint.describe import new_card
from zoo.checkpoint.tensors import read_tensors
from zoo.checkpoint.write import export
from zoo.draws import Draw, counted
from zoo.errors import ZooError, nearest
from zoo.paths import expanded
from zoo.strict import printable
from zoo.tasks.imported import Imported


@dataclass(frozen=True)
class Import:
    """What came of an import: the folder, the prefix that was cut off, the share (0 to 1) of the backbone's parameters
    that the file gave, the tensors of the backbone that it lacks, and how many of the file's own were left aside
    (heads, optimizers, second networks).
    """

    folder: Path
    prefix: str
    share: float
    missing: tuple[str, ...]
    left_aside: int

    @property
    def sentence(self) -> str:
        where = f"beginning with {self.prefix!r}" if self.prefix else "without a prefix"
        return (
            f"{self.folder} is the checkpoint; {100 * self.share:.1f} % of the backbone's parameters come from the "
            f"file's tensors {where}, "
            f"and {self.left_aside:,} of its tensors were left aside"
        )


def import_checkpoint(
    file: str | Path,
    backbone: str,
    out: str | Path,
    *,
    size: int | None = None,
    prefix: str | None = None,
    license: str | None = None,
    allow_partial: bool = False,
    **arguments: Any,
) -> Import:
    """Make a checkpoint of the backbone in a file of weights from elsewhere.

    Args:
        file: a Lightning .ckpt (of lightly, solo-learn, ...), a state dict as .pth, .pt or .bin, or .safetensors.
        backbone: the timm model that the weights belong to; further keywords are timm's own.
        out: folder of the checkpoint; one that holds anything is refused.
        size: side of the pictures in pixels; by default the model's own.
        prefix: what the names of its tensors begin with in the file; by default the one under which most parameters
            match.
        license: of the weights, an SPDX name; by default the card claims none, and push asks for one.
        allow_partial: leave what the file lacks at random numbers, which the card then says.

    A Sequential of the model's children, whose tensors are called 0.weight and so on, is understood too. The card has
    the file's name and sha256 as parent. Raises ZooError for a file that holds more than data, weights of another
    network (with the share that matches), two prefixes that match equally well, and weights that aren't finite.
    """
    file, out = expanded(file), expanded(out)
    if out.name in ("", ".."):  # . has no name to write beside
        out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ZooError(f"{out} exists already; remove it, or give another folder")
    with counted(torch.device("cpu"), 0, Draw.IMPORTED):
        made = create_backbone(backbone, size=size, **arguments)
    if made.reads != "image":
        raise ZooError(f"{backbone} reads {made.reads}, and weights are imported for networks of timm alone")
    tensors = read_tensors(file)
    wanted = made.model.state_dict()
    found, names = _best(tensors, wanted, made.model, prefix, file)
    share = _matched(names, wanted)
    missing = tuple(key for key in wanted if key not in names and not key.endswith("num_batches_tracked"))
    _check_share(share, missing, tensors, wanted, names, file, backbone, allow_partial)
    made.model.load_state_dict({key: tensors[name].to(wanted[key].dtype) for key, name in names.items()}, strict=False)
    task = Imported(made.eval()).eval()
    export(task, out, _card(file, out, made, share, license))
    return Import(out, found, share, missing, len(tensors) - len(set(names.values())))


# ---- reading -------------------------------------------------------------------------------------


# ---- matching ------------------------------------------------------------------------------------


def _best(
    tensors: dict[str, Tensor], wanted: dict[str, Tensor], model: nn.Module, given: str | None, file: Path
) -> tuple[str, dict[str, str]]:
    """(prefix, the file's name of each wanted tensor) of the prefix and naming under which most parameters match."""
    rows = []
    for naming in (wanted.keys(), _numbered(wanted, model)):
        alias = {naming[key] if isinstance(naming, dict) else key: key for key in wanted}
        for start in _prefixes(tensors, alias):
            names = {
                key: start + other for other, key in alias.items() if _fits(tensors.get(start + other), wanted[key])
            }
            rows.append((_matched(names, wanted), len(names), start, names))
    if given is not None:
        dotted = given if given.endswith(".") or not given else f"{given}."
        rows = (
            [row for row in rows if row[2] == dotted or f".{row[2]}".endswith(f".{dotted}")]
            if dotted
            else [row for row in rows if not row[2]]
        )
        if not rows:
            tops = {".".join(name.split(".")[:2]) for name in tensors}
            raise ZooError(f"{file} has no tensors of this backbone that begin with {given!r}{nearest(given, tops)}")
    if not rows:
        return "", {}
    best = max(rows, key=lambda row: row[:2])
    equal = {row[2]: row[3] for row in rows if row[:2] == best[:2]}
    if best[0] and any(not _same(equal[start], best[3], tensors) for start in equal):
        raise ZooError(
            f"{file} holds {len(equal)} networks that fit equally well, whose tensors begin with "
            f"{' and '.join(sorted(equal))}; "
            f"choose one, as in --prefix {min(equal)}"
        )
    return best[2], best[3]


def _prefixes(tensors: dict[str, Tensor], alias: dict[str, str]) -> list[str]:
    """What stands before a wanted name in some name of the file, in order."""
    found = {}
    for name in tensors:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in alias:
                found["".join(f"{part}." for part in parts[:cut])] = None
    return list(found)


def _numbered(wanted: dict[str, Tensor], model: nn.Module) -> dict[str, str]:
    """conv1.weight -> 0.weight: what nn.Sequential(*model.children()) calls them."""
    number = {name: str(position) for position, (name, _) in enumerate(model.named_children())}
    return {key: ".".join([number.get(key.split(".")[0], "-"), *key.split(".")[1:]]) for key in wanted}


def _fits(tensor: Tensor | None, wanted: Tensor) -> bool:
    return (
        tensor is not None and tensor.shape == wanted.shape and tensor.is_floating_point() == wanted.is_floating_point()
    )


def _matched(names: dict[str, str], wanted: dict[str, Tensor]) -> float:
    """Share of the numbers, 0 to 1; counters of batches aren't among them."""
    sizes = {key: tensor.numel() for key, tensor in wanted.items() if tensor.is_floating_point()}
    return sum(sizes.get(key, 0) for key in names) / max(1, sum(sizes.values()))


def _same(names: dict[str, str], others: dict[str, str], tensors: dict[str, Tensor]) -> bool:
    return (
        names == others
        or names.keys() == others.keys()
        and all(torch.equal(tensors[names[key]], tensors[others[key]]) for key in names)
    )


def _check_share(
    share: float,
    missing: tuple[str, ...],
    tensors: dict,
    wanted: dict,
    names: dict,
    file: Path,
    backbone: str,
    allow: bool,
) -> None:
    if not share:
        raise ZooError(
            f"none of the {len(tensors):,} tensors in {file} is one of {backbone}'s; is it another network, or does "
            "it take --backbone "
            "keywords or another --size?"
        )
    if missing and not allow:
        raise ZooError(
            f"{file} holds {100 * share:.1f} % of the parameters of {backbone} (the first that it lacks: {missing[0]} "
            "of shape "
            f"{list(wanted[missing[0]].shape)}); it belongs to another network, keywords or --size; with "
            "--allow-partial the rest stays "
            "random"
        )


def _card(file: Path, out: Path, backbone: Any, share: float, license: str | None) -> dict:
    name = re.sub(r"[^a-z0-9._-]+", "-", out.name.lower()).strip("-._")[:100] or "imported"
    source = cards.parent_text(printable(file.name), cards.sha256(file))
    rest = "" if share == 1 else f" It holds {100 * share:.1f} % of the parameters; the others are random."
    data = {"name": "unknown", "version": "", "license": "unknown", "attribution": "", "fingerprint": ""}
    return new_card(
        name,
        f"Weights imported from {printable(file.name)}.{rest}",
        data | {"size": backbone.size, "channels": backbone.channels},
        license=license,
        parent=source,
    )
