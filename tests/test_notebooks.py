"""The notebooks of examples/, one for each way in: they run as they are, and what stands in them is what a run left
there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

EXAMPLES = Path(zoo.__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="an installed zoo comes without its examples")


def cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_is_one_for_each_way_in():
    assert [path.stem for path in NOTEBOOKS] == ["your-network", "your-pictures", "your-task"]
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"(examples/{path.name})" in readme for path in NOTEBOOKS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path):
    """As a script, in an empty folder, with empty caches and no network."""
    script = tmp_path / "script.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells(notebook)), encoding="utf-8")
    (tmp_path / "here").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ZOO_HUB"} | {
        "ZOO_HOME": str(tmp_path / "home"),
        "ZOO_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    for stored in (
        line
        for cell in cells(notebook)
        for output in cell["outputs"]
        if output["output_type"] == "stream"
        for line in output["text"]
    ):
        words = re.sub(r"[-\d.,±]+", "", stored).split()  # numbers may differ between machines
        assert any(re.sub(r"[-\d.,±]+", "", line).split() == words for line in said.splitlines()), (
            f"{stored!r} stands there, and this doesn't print such a line"
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_stands_in_it_is_of_one_run_from_top_to_bottom(notebook):
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    text = json.dumps(
        [
            {key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")} or output
            for output in outputs
        ]
    )
    assert not re.search(r"/(tmp|root|home|Users)/", text), "the place where it ran is nobody's business"
    assert any("image/png" in output.get("data", {}) for output in outputs)
