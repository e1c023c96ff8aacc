"""The words of the command line: each verb, its options and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from zoo import verbs
from zoo.errors import ZooError, nearest


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints as sentences that name the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        raise ZooError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            if action.dest == "verb":
                raise ZooError(f"{value!r} is not a verb of zoo{nearest(value, action.choices)}")
            option = f"{action.option_strings[0]} " if action.option_strings else ""
            raise ZooError(f"{self.prog} doesn't know {option}{value!r}{nearest(value, action.choices)}")


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of `zoo`, and those of its verbs by name."""
    top = Parser(
        prog="zoo",
        description="Pretext tasks, recipes and checkpoints for self-supervised representation learning.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    subparsers = top.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    known: dict[str, Parser] = {}

    def verb(name: str, function: Callable, about: str, **options: Any) -> Parser:
        out = known[name] = subparsers.add_parser(name, help=about, description=about, allow_abbrev=False, **options)
        out.set_defaults(function=function, status=0)
        out.add_argument(
            "--json", action="store_true", help="print the result as JSON, and nothing else, on standard output"
        )
        out.add_argument("--offline", action="store_true", help="never ask the network, as ZOO_OFFLINE=1 does")
        return out

    _add_listing(verb)
    _add_training(verb)
    _add_hubs(verb)
    p = verb("new-task", verbs.new_task, "Write the skeleton of a package with a pretext task of your own.")
    p.add_argument("name", help="the task's name: lower-case words joined by hyphens")
    p.add_argument(
        "--kind",
        default="image",
        choices=["image", "text", "audio", "pair"],
        help="what the task learns from; pair is images with texts; default image",
    )
    p.add_argument("--out", help="folder of the package; default zoo-NAME")
    p = verb("completion", completion, "Print a completion script for a shell.")
    p.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top, known


def _hub(parser: Parser) -> None:
    parser.add_argument(
        "--hub",
        help="a folder, https://... or hf://org/name@revision; default ZOO_HUB, then the hub that came with the zoo",
    )


def _add_listing(verb: Callable[..., Parser]) -> None:
    p = verb("list", verbs.list_, "List tasks, backbones, data sets, recipes or checkpoints.")
    p.add_argument(
        "kind",
        nargs="?",
        choices=verbs.KINDS,
        help="tasks, backbones, data, recipes or checkpoints; by default all but backbones",
    )
    p.add_argument("glob", nargs="?", default="*", help="shell pattern of names, in quotes")
    p.add_argument(
        "--check",
        action="store_true",
        help="import the listed tasks, data sets or backbones, each in a process of its own, and say what is broken",
    )
    _hub(p)
    p = verb("info", verbs.info, "Say what is known of a task, recipe, data set, backbone or checkpoint.")
    p.add_argument("name", help="a name, folder:PATH, shards:PATH, or the folder of a checkpoint or run")
    _hub(p)
    p = verb("data", verbs.data, "List data sets, get one, or pack a folder of pictures into shards.")
    p.add_argument("what", choices=["list", "get", "shard"])
    p.add_argument("name", nargs="?", help="the set to get, or the folder of pictures to pack")
    p.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="a file or folder that holds the set, instead of its sources",
    )
    p.add_argument("--out", help="folder for the shards")
    p.add_argument("--per-shard", type=int, default=1000, metavar="N", help="pictures in a shard; default 1000")


def _add_training(verb: Callable[..., Parser]) -> None:
    p = verb("quickstart", verbs.quickstart, "The whole path on Fashion-MNIST: pretrain, push, pull, adapt, report.")
    p.add_argument("--out", default="quickstart", help="folder for all that is written")
    p.add_argument("--steps", type=int, help="optimizer steps instead of the recipe's")
    p.add_argument("--resume", action="store_true", help="go on with an interrupted one; give the other words as then")
    p.add_argument("--no-progress", action="store_true", help="draw no progress bar")
    p = verb(
        "pretrain",
        verbs.pretrain,
        "Run a recipe. Every key of it can be given as --group.key VALUE.",
        add_help=False,
        usage="zoo pretrain RECIPE [--out DIR] [--resume] [--smoke] [--logger NAME] [--no-progress] [--json] "
        "[--offline] [--group.key VALUE ...]",
    )
    p.add_argument("recipe", nargs="?", help="a YAML file, or the name of a recipe that came with the zoo")
    p.add_argument("-h", "--help", action="store_true", help="with a recipe: list its keys instead")
    p.add_argument("--out", help="folder of the run; default runs/RECIPE-sSEED, with -2, -3, ... where that is taken")
    p.add_argument("--resume", action="store_true", help="go on from the newest saved state that is whole")
    p.add_argument(
        "--smoke", action="store_true", help="two tiny steps on generated data, to see that everything fits together"
    )
    p.add_argument(
        "--logger", default="csv", choices=["csv", "tensorboard", "wandb", "none"], help="where curves go; default csv"
    )
    p.add_argument("--no-progress", action="store_true", help="draw no progress bar")
    p = verb("adapt", verbs.adapt, "Adapt a checkpoint to labelled data and say how good it is on the test split.")
    p.add_argument("checkpoint", help="a name in the hub, or the folder of a checkpoint or run")
    p.add_argument("--data", required=True, help="a data set's name, folder:PATH or shards:PATH")
    p.add_argument(
        "--mode",
        default="probe",
        choices=["knn", "probe", "finetune", "lora"],
        help="probe, the default, is a linear classifier on frozen features, which zoo evaluate calls linear; lora "
        "adds matrices of low rank "
        "to a transformer's layers, and needs peft",
    )
    p.add_argument(
        "--labels",
        help="share of the training labels such as 0.01, or a whole number of each class such as 5; default all",
    )
    p.add_argument("--per-class", type=int, help="the latter, by another name")
    p.add_argument(
        "--out", help="folder of the classifier; default adapted/CHECKPOINT-DATA-MODE, with -2, ... if taken"
    )
    p.add_argument("--seed", type=int, default=0, help="decides which labels, and fine-tuning's order")
    p.add_argument("--no-baselines", action="store_true", help="leave out random weights and raw pixels")
    _hub(p)
    p = verb("evaluate", verbs.evaluate, "Measure a checkpoint beside random weights and raw pixels.")
    p.add_argument("checkpoint", help="a name in the hub, or the folder of a checkpoint or run")
    p.add_argument("--data", help="default: the data it was trained on")
    p.add_argument(
        "--protocols",
        nargs="+",
        default=["knn", "linear"],
        choices=["knn", "linear", "finetune"],
        help="default knn and linear, which is the probe of zoo adapt",
    )
    p.add_argument(
        "--labels",
        nargs="+",
        default=["1.0", "0.01"],
        help="shares such as 0.01, or whole numbers per class such as 5; default 1.0 and 0.01",
    )
    p.add_argument("--save", action="store_true", help="write the numbers into the card")
    p.add_argument("--no-baselines", action="store_true", help="leave out random weights and raw pixels")
    _hub(p)
    p = verb("reproduce", verbs.reproduce, "Recompute the numbers of a checkpoint's card and say whether they hold.")
    p.add_argument("checkpoint", help="a name in the hub, or the folder of a checkpoint or run")
    _hub(p)
    p = verb("report", verbs.report, "Write an HTML page of one or more checkpoints.")
    p.add_argument("checkpoints", nargs="+", help="names in the hub, or folders of checkpoints or runs")
    p.add_argument("--out", default="report.html", help="the page; default report.html")
    _hub(p)


def _add_hubs(verb: Callable[..., Parser]) -> None:
    p = verb(
        "import",
        verbs.import_,
        "Make a checkpoint of a file of weights from elsewhere. Keywords of the timm model are given as "
        "--backbone.KEYWORD VALUE.",
    )
    p.add_argument(
        "file",
        help="a Lightning .ckpt, or a state dict as .pth, .pt, .bin or .safetensors; pickled code in it is never run",
    )
    p.add_argument(
        "--backbone",
        required=True,
        metavar="NAME",
        help="the timm model that the weights belong to; see zoo list backbones",
    )
    p.add_argument("--out", required=True, help="folder of the checkpoint")
    p.add_argument(
        "--prefix", help="what the names of the backbone's tensors begin with in the file; by default found out"
    )
    p.add_argument("--size", type=int, help="side of the pictures in pixels; default the model's own")
    p.add_argument("--license", help="SPDX name of the licence of the weights; by default none is claimed")
    p.add_argument(
        "--allow-partial",
        action="store_true",
        help="leave what the file lacks at random numbers instead of refusing it",
    )
    p = verb(
        "export",
        verbs.export,
        "Write the network of a checkpoint, or a classifier of zoo adapt, as one file for other runtimes.",
    )
    p.add_argument(
        "checkpoint",
        help="a name in the hub, the folder of a checkpoint or run, or that of a classifier that zoo adapt wrote",
    )
    p.add_argument(
        "--to",
        default="torch-export",
        choices=["torch-export", "onnx"],
        help="torch-export, the default, which torch alone runs, or onnx, which needs onnx, onnxscript and onnxruntime",
    )
    p.add_argument("--out", help="the file; default NAME.pt2 or NAME.onnx")
    _hub(p)
    p = verb("pull", verbs.pull, "Bring a checkpoint from a hub, every file's sha256 checked, and print its folder.")
    p.add_argument("name", help="a name in the hub, or hf://org/name@revision")
    _hub(p)
    p = verb("push", verbs.push, "Put a checkpoint into a hub.")
    p.add_argument("checkpoint", help="the folder of a checkpoint or run")
    p.add_argument("--to", required=True, help="a folder, or hf://org/name")
    p.add_argument("--name", help="its name there; default the card's")
    p.add_argument("--license", help="SPDX name of the licence of the weights, written into the card")
    p.add_argument("--replace", action="store_true", help="replace what has that name")
    p = verb("verify", verbs.verify, "Hash a hub folder again, or the cache, and name what is damaged.")
    p.add_argument("target", nargs="?", help="a hub folder or a checkpoint; default the cache")


def completion(given: argparse.Namespace) -> Any:
    import shtab

    top, known = build_parser()
    for action in (action for parser in known.values() for action in parser._actions):
        if action.dest in ("recipe", "checkpoint", "checkpoints", "out", "source", "target", "file"):
            action.complete = shtab.FILE
    script = shtab.complete(top, shell=given.shell)
    if not given.json:
        print(script)
    return {"script": script}
