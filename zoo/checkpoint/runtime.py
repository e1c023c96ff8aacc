"""A checkpoint's network, or a classifier that `zoo.adapt` wrote, as one file for other runtimes: torch.export's, or
ONNX.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from zoo import card as cards
from zoo.backbones import Backbone, create_backbone
from zoo.backbones.image import ImageBackbone
from zoo.checkpoint.classifier import with_classifier
from zoo.checkpoint.files import CONFIG, FACTS, MODEL
from zoo.checkpoint.read import load_backbone
from zoo.errors import ZooError, because, nearest
from zoo.hub.hub import find
from zoo.machine.bounds import BESIDE, Bounded
from zoo.paths import expanded, write_bytes

FORMATS = {"torch-export": ".pt2", "onnx": ".onnx"}  # as the command line has them too, which can't import this
CLOSE = 1e-4  # by which the file's outputs may differ from torch's, as a share of the largest
TRIED = (1, 3)  # batches of so many pictures are compared


@dataclass(frozen=True)
class Exported:
    """The file, what goes in and what comes out of it.

    It takes float pictures (batch, *input) in [0, 1], the normalisation being part of it, and gives (batch, `outputs`)
    of features or, of a classifier, logits. `difference` is the largest from what torch gives, over random pictures.
    """

    file: Path
    format: str
    kind: str  # features or logits
    input: tuple[int, int, int]
    outputs: int
    difference: float

    @property
    def sentence(self) -> str:
        return (
            f"{self.file} takes float pictures (batch, {', '.join(map(str, self.input))}) in [0, 1] and gives "
            f"{self.outputs} {self.kind} of each, which "
            f"differ from torch's by at most {self.difference:.1e}"
        )


def export_checkpoint(
    checkpoint: str | Path, to: str = "torch-export", out: str | Path | None = None, hub: str | Path | None = None
) -> Exported:
    """Write the network of a checkpoint as one file that runs without us, timm, and in the case of ONNX torch.

    Args:
        checkpoint: a folder of a checkpoint or run, a name in the hub, or the folder of a classifier that `zoo.adapt`
            wrote.
        to: torch-export, or onnx, which needs the extra of that name.
        out: the file; by default the name with .pt2 or .onnx behind it. One that exists is refused.
        hub: where a name is looked for.

    The file is run on pictures before it is written, and carries name, licence, attribution and classes. Raises
    ZooError for an unknown checkpoint or format, a damaged one, a network that can't be exported, and outputs that
    aren't torch's.
    """
    if to not in FORMATS:
        raise ZooError(
            f"{to!r} is not a format{nearest(to, FORMATS)}; timm needs none, since it loads the folder of a "
            "checkpoint as it is"
        )
    network, facts = _network(checkpoint, hub)
    out = expanded(out if out is not None else f"{facts['name']}{FORMATS[to]}")
    if out.exists():
        raise ZooError(f"{out} exists already; remove it, or add --out ANOTHER-FILE")
    shape = (network.channels, *network.image_size)
    facts |= {"input": [*shape], "range": [0, 1]}
    try:
        with torch.no_grad(), _quiet():
            data, run = _WRITE[to](network, torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)), facts)
            difference, outputs = _compared(network, run, shape)
    except ZooError:
        raise
    except Exception as error:  # torch.export and its converters raise whatever they stumble over
        raise ZooError(f"torch can't export {facts['name']} ({network.name}) as {to}: {because(error)}") from error
    if not difference <= CLOSE:
        raise ZooError(
            f"the outputs of {facts['name']} as {to} differ from torch's by {difference:.1e} of the largest, so it "
            "wasn't written"
        )
    return Exported(write_bytes(out, data), to, facts["output"], shape, outputs, difference)


# ---- what is exported ----------------------------------------------------------------------------


def _network(checkpoint: str | Path, hub: str | Path | None) -> tuple[Backbone, dict]:
    """The network with its normalisation, in eval mode, and what is said of it in the file."""
    local = expanded(checkpoint)
    if (local / FACTS).is_file():
        return _classifier(local)
    folder = find(checkpoint, hub)
    card = cards.public(cards.read_card(folder))
    return load_backbone(folder).eval(), {
        "name": card["name"],
        "output": "features",
        "license": card["license"],
        "attribution": card["data"]["attribution"],
        "data": card["data"]["name"],
    }


def _classifier(folder: Path) -> tuple[Backbone, dict]:
    """That of a folder that `zoo.adapt` wrote."""
    config, facts = (
        cards.read_json(_read(folder / name, cards.LARGEST), str(folder / name)) for name in (CONFIG, FACTS)
    )
    data = _read(folder / MODEL)
    try:
        (channels, size, _), classes = config["pretrained_cfg"]["input_size"], config["pretrained_cfg"]["label_names"]
        name, arguments = (
            config["architecture"],
            {key: value for key, value in config["model_args"].items() if key != "img_size"},
        )
        if not (1 <= size <= cards.LARGEST_SIZE and 1 <= channels <= cards.MOST_CHANNELS):
            raise ZooError(f"{folder / CONFIG} can't be of pictures of {size} pixels and {channels} channels")
        data_name = cards.short_name(facts["data"])
        said = {
            "name": re.sub(r"[^a-z0-9._-]+", "-", f"{facts['checkpoint']}-{data_name}".lower()).strip("-._")[:100]
            or "classifier",
            "output": "logits",
            "classes": [*classes],
            "license": facts["license"],
            "attribution": facts["attribution"],
            "data": data_name,
        }
        with (
            torch.random.fork_rng(devices=[]),
            Bounded(f"the network that {folder / CONFIG} describes", BESIDE + 4 * len(data)),
        ):
            backbone = create_backbone(name, size=size, **arguments)
            model = with_classifier(
                backbone, torch.zeros(len(classes), backbone.num_features), torch.zeros(len(classes))
            )
        model.load_state_dict(safetensors.torch.load(data))
    except ZooError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
        raise ZooError(f"{folder} is not a whole classifier of zoo adapt: {because(error)}") from error
    return ImageBackbone(model, name, size, arguments).eval(), said


def _read(file: Path, limit: int = -1) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(limit + 1 if limit >= 0 else -1)
    except OSError as error:
        raise ZooError(f"{file} can't be read: {error.strerror}") from error


# ---- formats -------------------------------------------------------------------------------------


def _torch_export(network: Backbone, example: Tensor, facts: dict):
    program = torch.export.export(network, (example,), dynamic_shapes=_any_batch())
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={cards.FILE: json.dumps(facts)})
    return stream.getvalue(), torch.export.load(io.BytesIO(stream.getvalue())).module()


def _onnx(network: Backbone, example: Tensor, facts: dict):
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ZooError(
            f"ONNX needs onnx, onnxscript and onnxruntime, and {error.name} isn't installed; install "
            "pretext-zoo[onnx], or export to torch-export"
        ) from error
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=_any_batch(),
        input_names=["image"],
        output_names=[facts["output"]],
        verbose=False,
    )
    onnx.helper.set_model_props(
        model := program.model_proto,
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()},
    )
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


_WRITE = {"torch-export": _torch_export, "onnx": _onnx}


def _any_batch() -> tuple[dict]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _compared(network: Backbone, run, shape: tuple[int, ...]) -> tuple[float, int]:
    """The largest difference between the file's outputs and the network's, as a share of the largest output; and how
    many there are of a picture.
    """
    worst, outputs = 0.0, 0
    for count in TRIED:
        image = torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))
        wanted, found = network(image), run(image)
        if found.shape != wanted.shape:
            raise ZooError(
                f"the exported file gives {tuple(found.shape)} where torch gives {tuple(wanted.shape)}, so it wasn't "
                "written"
            )
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)))
        outputs = wanted.shape[1]
    return worst, outputs


@contextlib.contextmanager
def _quiet():
    """The exporters speak to those who write them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
