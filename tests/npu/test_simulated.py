"""Runs tests/npu/simulated and tests/hardware on the simulated NPU, which needs a process of its own.

To work on one of them: ``pytest tests/npu/simulated/test_graphs.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from platforms import linux_only

from dev.npu_simulator import report as simulated


ROOT = Path(__file__).parents[2]
pytestmark = linux_only("Ascend hosts run it")


@pytest.fixture(scope="module")
def report() -> str:
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/npu/simulated", "tests/hardware", "-m", "not cuda", "--color=no"],
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
