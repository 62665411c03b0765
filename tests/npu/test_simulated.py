"""Runs tests/npu/simulated and tests/hardware on the simulated NPU, which needs a process of its own.

All of them with the library pair of the Ascend stack; with another pair those that show what the libraries compute.
To work on one of them: ``pytest tests/npu/simulated/test_graphs.py``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from platforms import linux_only

from dev.npu_simulator import report as simulated


ROOT = Path(__file__).parents[2]
pytestmark = linux_only("Ascend hosts run it")

SIMULATED = "tests/npu/simulated"
OF_THE_LIBRARIES = [f"{SIMULATED}/test_{name}.py" for name in ("golden_on_npu", "fused_operators", "step_counts")]


WITH_COMFYUI = "tests/hardware/test_comfyui.py"
"""It needs ComfyUIs, which tests/nodes has: test_native.py holds the same there. To try it itself:
``pytest tests/npu/simulated/test_graphs.py tests/hardware/test_comfyui.py -m "not cuda"``."""


def chosen() -> list[str]:
    """What to run with the installed libraries."""
    pinned = re.search(r"^diffusers==(\S+)", (ROOT / "requirements-npu.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    return [SIMULATED, "tests/hardware"] if version("diffusers") == pinned[1] else OF_THE_LIBRARIES


@pytest.fixture(scope="module")
def report() -> str:
    child = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen(), f"--ignore={WITH_COMFYUI}", "-m", "not cuda", "--color=no"],
        cwd=ROOT,
        env={**os.environ, "DEEPGEN_HARDWARE_SIZE": "tiny"},
        capture_output=True,
        text=True,
        check=False,
    )
    simulated.printed.append(child.stdout)
    if child.returncode != 0:
        pytest.fail(f"on the simulated NPU:\n{child.stdout}\n{child.stderr}", pytrace=False)
    return child.stdout


def test_everything_holds_on_the_simulated_npu(report):
    summary = report.strip().splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary and "xfail" not in summary
