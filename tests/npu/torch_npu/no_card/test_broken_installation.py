"""What users meet who forgot to source CANN's environment: torch itself does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepgen_npu import npu_setup


ROOT = Path(__file__).parents[4]
_CHOOSE = """
from deepgen_npu.devices import DeviceError, resolve_device
print(resolve_device("auto"))
try:
    resolve_device("npu")
except DeviceError as error:
    print(error)
"""


@pytest.fixture
def python(tmp_path):
    """Runs Python in a process that does not find CANN's libraries, although a CANN is there."""
    script = tmp_path / "cann" / "set_env.sh"
    script.parent.mkdir()
    script.touch()

    def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        hidden = ("LD_LIBRARY_PATH", "TORCH_DEVICE_BACKEND_AUTOLOAD")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**environment, "ASCEND_TOOLKIT_HOME": str(script.parent), **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    python.command = f"source {script}"  # pyright: ignore[reportFunctionMemberAccess]
    return python


def test_torch_does_not_load(python):
    child = python("-c", "import torch")
    assert child.returncode != 0
    assert "cannot open shared object file" in child.stderr


def test_doctor_names_the_command(python):
    child = python("-m", "deepgen_npu", "doctor", "--json")
    assert child.returncode == 1, child.stderr
    found = json.loads(child.stdout)
    assert not found["healthy"]
    problems = [finding for finding in found["findings"] if finding["level"] == "problem"]
    assert len(problems) == 1
    assert npu_setup.NOT_SOURCED in problems[0]["what"]
    assert "libhccl.so" in problems[0]["what"]
    assert problems[0]["fix"] == python.command


@pytest.mark.parametrize("device", ["npu", "auto", "cpu"])
def test_the_command_line_names_it_in_one_error(python, tmp_path, device):
    arguments = ["generate", "--model_path", "demo_checkpoint", "--device", device]
    child = python("-m", "deepgen_npu", *arguments, "--output_image", str(tmp_path / "picture.png"))
    assert child.returncode == 2
    error = " ".join(child.stderr.split())
    assert error.startswith(f"error: {npu_setup.NOT_SOURCED}") and f"To fix it: {python.command} To run" in error


def test_devices_where_torch_loads_without_torch_npu(python):
    child = python("-c", _CHOOSE, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    reason, *advice = lines[lines.index("cpu") + 1 :]
    assert npu_setup.NOT_SOURCED in reason
    assert advice[0] == f"    {python.command}"


@pytest.mark.parametrize("card", [False, True])
def test_doctor_where_cann_is_there_and_no_card_answers(tmp_path, card):
    """The package is fine; what is wrong depends on whether the machine has a card."""
    from deepgen_npu.tools import doctor

    if card:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev" / "davinci0").touch()
    found = doctor.inspect_host(root=tmp_path)
    assert found.packages["torch_npu"] is not None
    about_cards = [finding for finding in found.findings if "torch_npu finds no NPU" in finding.what]
    assert [finding.level for finding in about_cards] == ["problem" if card else "advice"]
    assert found.healthy is not card
