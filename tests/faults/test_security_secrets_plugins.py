"""S4 and S5: secrets stay secret, and plugins harm nobody else."""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkpoint_example import untrained
from hub_server import Server
from recipe_example import no_hang
from run_example import place, recipe, recipe_file  # noqa: F401
from site_example import TASK, Site, as_found, site  # noqa: F401

import zoo
from zoo import cli, plugin_trial
from zoo.errors import ZooError
from zoo.hub import hub

# ---- S4: secrets ---------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_QuiteSecretTokenOfMine0123456789ab",
    "WANDB_API_KEY": "deadbeef" * 5,
    "HUGGING_FACE_HUB_TOKEN": "hf_AnotherSecret9876543210zyxwvutsrq",
}
IN_ADDRESSES = ("s3cr3tpassw0rd", "t0k3nofaquery")


@pytest.fixture
def told(tmp_path, monkeypatch, capfd) -> Callable[[], bytes]:
    """Everything that was logged at DEBUG by anybody, printed, or written below the test's folder."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    handler = logging.FileHandler(tmp_path / "debug.log")
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    said = []

    def everything() -> bytes:
        handler.flush()
        said.extend(capfd.readouterr())
        files = b"\0".join(
            str(path).encode() + b"\0" + path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()
        )
        return files + b"\0" + "\0".join(said).encode()

    yield everything
    root.removeHandler(handler)
    root.setLevel(level)
    handler.close()


@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_s4_secrets_are_in_nothing_that_is_written_or_said(logger, told, tmp_path, monkeypatch):
    if logger == "wandb":
        pytest.importorskip("wandb")
    server = Server(tmp_path / "hub")
    assert cli.main(["pretrain", recipe_file(), "--out", "run", "--logger", logger, "--no-progress"]) == 0
    assert cli.main(["evaluate", "run", "--protocols", "knn", "--labels", "3", "--save"]) == 0
    assert cli.main(["report", "run"]) == 0
    assert cli.main(["push", "run", "--to", str(tmp_path / "hub"), "--license", "MIT", "--name", "small"]) == 0
    monkeypatch.delenv("ZOO_OFFLINE")
    assert cli.main(["pull", "small", "--hub", server.address]) == 0
    password, token = IN_ADDRESSES
    host = server.address.removeprefix("http://")
    for address in (
        f"http://me:{password}@{host}",
        f"{server.address}?token={token}",
        f"{server.address}/hub#{token}",
        f"https://me:{password}@hub.example",
        f"https://hub.example/x?access_token={token}",
    ):
        for words in (
            ["pull", "small"],
            ["list", "checkpoints"],
            ["info", "nothing-known"],
            ["adapt", "small", "--data", "digits"],
        ):
            assert cli.main([*words, "--hub", address]) == 2
    monkeypatch.setenv("ZOO_HUB", f"https://me:{password}@hub.example/?token={token}")
    assert cli.main(["list", "checkpoints"]) == 2 and cli.main(["list"]) == 0
    server.faults = [
        (
            "small/model.safetensors",
            lambda handler: _redirect(handler, f"https://me:{password}@cdn.example/x?X-Amz-Signature={token}"),
        )
    ]
    shutil.rmtree(hub.cache())
    assert cli.main(["pull", "small", "--hub", server.address]) == 2
    server.server.shutdown()
    server.server.server_close()
    text = told()
    assert b"redirects to" in text and b"autoencoder" in text
    found = [secret for secret in (*SECRETS.values(), *IN_ADDRESSES) if secret.encode() in text]
    assert found == []
    if logger == "wandb":
        assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))


def test_s4_no_word_of_a_command_line_is_repeated_with_what_is_secret_in_it(told, tmp_path):
    password, token = IN_ADDRESSES
    run, file = str(untrained(tmp_path / "small")), recipe_file()
    for address in (
        f"{scheme}://{where}"
        for scheme in ("https", "S3", "file", "hf")
        for where in (
            f"me:{password}@h.example/x",
            f"me:{password}/@h.example/x",
            f"h.example/x?token={token}",
            f"me:{token}",
        )
    ):
        for words in (
            ["pull"],
            ["info"],
            ["pretrain"],
            ["adapt", "--data", "digits"],
            ["evaluate"],
            ["report"],
            ["verify"],
            ["data", "get"],
            [],
            ["pretrain", file, "--data.name"],
            ["pretrain", file, "--backbone.x"],
            ["push", run, "--license", "MIT", "--to"],
            ["list"],
            ["import", "--backbone", "test_resnet", "--out", "imported"],
            ["pull", "small", "--hub"],
            ["push", run, "--to", "hub", "--name"],
        ):
            assert cli.main([*words, address]) in (1, 2), (words, address)
    text = told()
    assert text.count(b"zoo: ") > 200 and [secret for secret in IN_ADDRESSES if secret.encode() in text] == []


def test_s4_no_secret_gets_into_a_card_or_recipe(told, site):
    """A task that asks for one, which would be an argument like any other."""
    site.install(
        "zoo-asks",
        {"asks": "plugin_asks:Task"},
        plugin_asks=TASK.format(name="asks").replace("width: int", "api_key: str = ''"),
    )
    file = _of_task("simclr")
    for number, key in enumerate(("task.api_key", "backbone.api_key", "backbone.token")):
        assert (
            cli.main(
                [
                    "pretrain",
                    file,
                    "--task.name",
                    "asks",
                    "--out",
                    f"run{number}",
                    f"--{key}",
                    "k3yinarecipe",
                    "--no-progress",
                ]
            )
            == 2
        )
        assert cli.main(["pretrain", file, "--out", f"other{number}", f"--{key}", "k3yinarecipe", "--no-progress"]) == 2
    with pytest.raises(
        ZooError,
        match="the task asks of zoo-asks 1.0 can't be imported: .* has an argument api_key, .* read it from the "
        "environment",
    ):
        zoo.create_task("asks", zoo.create_backbone("test_resnet", size=16), api_key="k3yinarecipe")
    text = told()
    assert b"backbone.token looks like a secret" in text and b"of zoo-asks 1.0 can't be imported" in text
    assert b"k3yinarecipe" not in text


def _of_task(name: str) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe() | {"task": {"name": name}}))
    return "recipe.yaml"


def _redirect(handler, target: str) -> None:
    handler.send_response(302)
    handler.send_header("Location", target)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


# ---- S5: plugins ---------------------------------------------------------------------------------


@pytest.fixture
def plagued(site) -> Site:
    """An environment in which one plugin is fine and all others are not."""
    site.install("zoo-fine", {"fine": "plugin_fine:Task"}, plugin_fine=TASK.format(name="fine"))
    site.install("zoo-raises", {"raises": "plugin_raises:Task"}, plugin_raises="raise RuntimeError('no such GPU')")
    site.install("zoo-exits", {"exits": "plugin_exits:Task"}, plugin_exits="import sys; sys.exit(3)")
    site.install("zoo-dies", {"dies": "plugin_dies:Task"}, plugin_dies="import os; os._exit(5)")
    site.install("zoo-hangs", {"hangs": "plugin_hangs:Task"}, plugin_hangs="import time; time.sleep(1000)")
    site.install("zoo-thief", {"simclr": "plugin_thief:Task"}, plugin_thief=TASK.format(name="simclr"))
    site.install("zoo-one", {"shared": "plugin_one:Task"}, plugin_one=TASK.format(name="shared"))
    site.install("zoo-two", {"shared": "plugin_two:Task"}, plugin_two=TASK.format(name="shared"))
    return site


def test_s5_no_verb_is_broken_by_somebody_elses_plugin(plagued, tmp_path, capsys):
    checkpoint = str(untrained(tmp_path / "small"))
    with no_hang(60):
        for words in (
            ["list", "tasks"],
            ["list"],
            ["info", "simclr"],
            ["info", "digits"],
            ["info", checkpoint],
            ["verify", checkpoint],
            ["pretrain", recipe_file(), "--smoke", "--no-progress"],
            ["pretrain", recipe_file(), "--help"],
            ["adapt", checkpoint, "--data", "digits", "--mode", "knn", "--per-class", "2"],
            ["push", checkpoint, "--to", "hub"],
            ["completion", "bash"],
        ):
            assert cli.main(words) == 0, (words, capsys.readouterr())
    plagued.install(
        "zoo-damaged", b"[zoo.tasks]\nx = \xff\xfe\n"
    )  # only now, since what trains can't do with it: see below
    assert cli.main(["list", "tasks"]) == cli.main(["info", "simclr"]) == 0
    assert plagued.imported() == [], "one was imported though nobody named it"
    out = capsys.readouterr()
    for name in ("zoo-fine 1.0", "zoo-raises 1.0", "zoo-exits 1.0", "zoo-dies 1.0", "zoo-hangs 1.0"):
        assert name in out.out
    assert (
        "zoo-thief 1.0 also has a task 'simclr'; the built-in one is used" in out.err
        and "zoo_damaged-1.0.dist-info" in out.err
    )
    assert "both claim the name; uninstall one" in out.out


@pytest.mark.parametrize("points", [b"[zoo.tasks]\nx = \xff\xfe\n", b"[zoo.tasks]\nword\n", b"\xff"])
def test_s5_damaged_metadata_is_named_by_what_torch_and_lightning_make_of_it(points, site, capsys):
    """They read those of every package, torch when it is imported and Lightning when it trains."""
    site.install("zoo-damaged", points)
    words = ["pretrain", recipe_file(), "--smoke", "--no-progress"]
    api = subprocess.run([sys.executable, "-c", "import zoo; zoo.load"], check=False, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-m", "zoo.cli", *words], check=False, capture_output=True, text=True)
    assert cli.main(words) == 2
    said = (
        "torch can't be used while the metadata of .*zoo_damaged-1.0.dist-info .* can't be read; uninstall or "
        "reinstall that package\n"
    )
    for text in (done.stderr, capsys.readouterr().err):
        assert re.fullmatch(f"zoo: {said}", text)
    assert done.returncode == 2 and re.search(f"zoo.errors.ZooError: {said}$", api.stderr)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "the task raises of zoo-raises 1.0 can't be imported: RuntimeError: no such GPU"),
        ("exits", "the task exits of zoo-exits 1.0 can't be imported: SystemExit: 3"),
        ("shared", "both claim the name; uninstall one"),
    ],
)
def test_s5_using_it_names_the_culprit(name, words, plagued, capsys):
    for use in (
        ["pretrain", recipe_file(), "--smoke", "--task.name", name],
        ["pretrain", recipe_file(), "--help", "--task.name", name],
    ):
        assert cli.main(use) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["info", name]) == 0 and words in capsys.readouterr().out
    assert cli.main(["list", "tasks"]) == 0


def test_s5_a_constructor_that_raises_names_the_culprit(site, capsys):
    code = TASK.format(name="wrong").replace("super().__init__(backbone)", "raise RuntimeError('no such GPU')")
    site.install("zoo-wrong", {"wrong": "plugin_wrong:Task"}, plugin_wrong=code)
    assert cli.main(["pretrain", _of_task("wrong"), "--smoke", "--task.width", "3"]) == 2
    assert capsys.readouterr().err == (
        "zoo: the task wrong of zoo-wrong 1.0 can't be made with {'width': 3} and the backbone test_resnet: "
        "RuntimeError: no such GPU\n"
    )


def test_s5_check_names_every_culprit(plagued, capsys, monkeypatch):
    check = plugin_trial.check_tasks
    monkeypatch.setattr(plugin_trial, "check_tasks", lambda entries: check(entries, timeout=20))
    problems = {}
    with no_hang(120):
        for pattern in ("fine", "raises", "exits", "dies", "hangs", "shared"):
            assert cli.main(["list", "tasks", pattern, "--check", "--json"]) == 0
            problems |= {row["name"]: row["problem"] for row in json.loads(capsys.readouterr().out)}
    assert problems.pop("shared").endswith("both claim the name; uninstall one")
    assert problems == {
        "fine": None,
        "raises": "the task raises of zoo-raises 1.0 can't be imported: RuntimeError: no such GPU",
        "exits": "the task exits of zoo-exits 1.0 can't be imported: SystemExit: 3",
        "dies": "zoo-dies 1.0: importing it ends the process, with exit code 5",
        "hangs": "zoo-hangs 1.0: importing it takes more than 20 seconds",
    }
