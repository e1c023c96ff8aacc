"""What a person gets to read who errs: one sentence on standard error, exit code 2, and nothing else."""

from __future__ import annotations

import re

import pytest
from run_example import hub, place, recipe_file, refused, trained, zoo_says  # noqa: F401

import zoo

SHIPPED = "simclr-test-resnet-fashion-mnist"

ERRORS = [
    (["lst"], "'lst' is not a verb of zoo; did you mean list?"),
    (["list", "--chek"], "zoo list doesn't take --chek; did you mean --check"),
    (["list", "-x"], "zoo list doesn't take -x; did you mean -h?"),
    (["--vershun"], "zoo doesn't take --vershun; did you mean --version?"),
    (["list", "taks"], "zoo list doesn't know 'taks'; did you mean tasks"),
    (["completion", "fish"], "zoo completion doesn't know 'fish'"),
    (["data", "got"], "zoo data doesn't know 'got'; did you mean get"),
    (["adapt", "{run}", "--data", "digits", "--mode", "prob"], "zoo adapt doesn't know --mode 'prob'; did you mean probe?"),
    (["pretrain", SHIPPED, "--logger", "wand"], "zoo pretrain doesn't know --logger 'wand'; did you mean wandb?"),
    (["evaluate", "{run}", "--protocols", "knn", "liner"], "zoo evaluate doesn't know --protocols 'liner'; did you mean linear?"),
    (["pretrain", SHIPPED, "--smoky"], "zoo pretrain doesn't take --smoky (keys of a recipe are written --group.key); did you mean --smoke"),
    (["pull"], "the following arguments are required: name; see zoo pull --help"),
    (["adapt", "{run}"], "the following arguments are required: --data; see zoo adapt --help"),
    (["adapt", "{run}", "--data", "digits", "--labels", "few"], "argument --labels: invalid float value: 'few'; see zoo adapt --help"),
    (["adapt", "{run}", "--data", "digits", "--labels", "0"], "0.0 is no amount of labels"),
    (["adapt", "{run}", "--data", "digits", "--labels", "0.5", "--per-class", "3"], "two ways to say how many labels"),
    (["evaluate", "{run}", "--labels", "few"], "--labels 'few' is neither a share such as 0.01 nor a number per class such as 5"),
    (["list", "recipes", "*", "more"], "unrecognized arguments: more"),
    (["list", "recipes", "--check"], "write:  zoo list tasks --check"),
    (["data", "get"], "zoo data get needs a name"),
    (["data", "get", "digit"], "there is no data set 'digit'; did you mean digits?"),
    (["info", "simclrr"], "'simclrr' is neither a task, a recipe, a data set, a backbone nor a checkpoint; did you mean simclr?"),
    (["pretrain"], "zoo pretrain needs a recipe; see zoo list recipes"),
    (["pretrain", "simclr-test-resnet-fashion-mnits"], f"there is no recipe 'simclr-test-resnet-fashion-mnits'.*did you mean {SHIPPED}"),
    (["pretrain", SHIPPED, "--seed"], "--seed lacks its value"),
    (["pretrain", SHIPPED, "--task.temprature", "0.1"], "task.temprature is not a key of this recipe; did you mean task.temperature"),
    (["pretrain", SHIPPED, "--optimm.lr", "0.1"], "optimm.lr is not a key of this recipe; did you mean optim.lr"),
    (["pretrain", SHIPPED, "--task.temperature", "warm"], "task.temperature is warm, but has to be float"),
    (["pretrain", SHIPPED, "--trainer.precision", "16"], "trainer.precision is 16, but has to be one of the words"),
    (["pretrain", SHIPPED, "--seed", "1", "--seed", "2"], "--seed is given twice"),
    (["pretrain", SHIPPED, "--optim.lr", "nan"], "optim.lr is nan"),
    (["pretrain", SHIPPED, "--smoke", "--task.name", "simclrr"], "'simclrr' is not a task; did you mean simclr?"),
    (["pretrain", SHIPPED, "--smoke", "--backbone.name", "test_resnt"], "'test_resnt' is not a backbone of timm; did you mean test_resnet"),
    (["pretrain", SHIPPED, "--smoke", "--backbone.output_strid", "8"], "backbone.output_strid is not a keyword of timm's test_resnet"),
    (["pretrain", SHIPPED, "--smoke", "--data.name", "fashion-mnits"], "there is no data set 'fashion-mnits'; did you mean fashion-mnist?"),
    (["pretrain", SHIPPED, "--smoke", "--data.name", "/"], "'/' is a folder, not the name of a data set; write folder:/"),
    (["pretrain", SHIPPED, "--data.name", "folder:nowhere"], "there is no folder .*nowhere"),
    (["pretrain", SHIPPED, "--trainer.max_steps", "0"], "doesn't say how long to train; set trainer.max_steps or trainer.max_epochs"),
    (["pretrain", SHIPPED, "--data.name", "digits", "--data.batch_size", "5000"], "the train split of digits has 1,258 images and one step needs 5,000"),
    (["pretrain", SHIPPED, "--data.batch_size", "0"], "data.batch_size is 0"),
    (["pretrain", "colorize-resnet10t-emoji", "--data.name", "fashion-mnist"], "the task colorize needs colour pictures, and those of fashion-mnist are grey"),
    (["pretrain", "mae-vit-fashion-mnist", "--smoke", "--backbone.patch_size", "5"], "patches of 5 pixels, which don't divide images of 28"),
    (["pretrain", "mae-vit-fashion-mnist", "--smoke", "--data.size", "30"], "patches of 4 pixels, which don't divide images of 30"),
    (["pretrain", "{run}/checkpoint/zoo.json"], "task is not a key of this recipe|names no task|is not a key"),
    (["pretrain", SHIPPED, "--resume"], f"runs/{SHIPPED}-s0 holds no run to resume; leave out --resume to start one"),
    (["adapt", "smal", "--data", "digits", "--hub", "{hub}"], "has no checkpoint smal; did you mean small?"),
    (["adapt", "{hub}", "--data", "digits"], "holds no checkpoint"),
    (["evaluate", "no/such/folder"], "no/such/folder is neither a folder nor the name of a checkpoint"),
    (["evaluate", "{run}", "--data", "digitz"], "there is no data set 'digitz'; did you mean digits?"),
    (["pull", "small", "--hub", "nowhere"], "nowhere is not a hub"),
    (["push", "{run}", "--to", "https://example.org/hub"], "can't be pushed to"),
    (["push", "{hub}", "--to", "another"], "holds no checkpoint"),
    (["verify", "nowhere"], "nowhere is neither a hub"),
    (["report", "{run}", "nowhere"], "has no checkpoint nowhere|nowhere is neither|there is no hub"),
    (["report", "{run}", "--out", "/proc/nowhere/page.html"], "/proc/nowhere/page.html can't be written"),
    (["new-task", "My_Task"], "'My_Task' can't name a task"),
    (["new-task", "mae"], "there is a task mae already"),
]


@pytest.mark.parametrize(("words", "sentence"), ERRORS, ids=[" ".join(words)[:70] for words, _ in ERRORS])
def test_one_sentence(words, sentence, refused, monkeypatch):
    monkeypatch.setattr("zoo.data.module.load_data", _no_download(zoo.load_data))
    got = refused(*words)
    assert re.search(re.escape(sentence) if not re.search(r"\.\*|\|", sentence) else sentence, got), got


def _no_download(load):
    """Nothing that a recipe gets wrong may cost a download first."""

    def load_data(name, *given):
        assert name not in ("fashion-mnist", "emoji"), f"{name} was asked for before the mistake was found"
        return load(name, *given)

    return load_data
