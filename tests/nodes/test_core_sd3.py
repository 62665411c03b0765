"""Our DiT against ComfyUI's own SD3, an implementation that shares nothing with the stock one but the weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui

from dev.comfyui.checkouts import Checkout


ROOT = Path(__file__).parents[2]
LIMIT = 1e-5

checkout = each_comfyui("that the DiT computes what ComfyUI's own SD3 computes")


@pytest.fixture(scope="module")
def found(checkout: Checkout) -> dict[str, Any]:
    """What the probe found. It ends with an error where ComfyUI does not read the DiT as its class SD3."""
    probe = subprocess.run(
        [checkout.python, Path(__file__).with_name("core_sd3_probe.py"), ROOT, checkout.path, str(LIMIT)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert probe.returncode == 0, probe.stderr
    return json.loads(probe.stdout.splitlines()[-1])


def test_comfyui_reads_every_weight(found):
    assert found["read"] == {"warnings": [], "left over": []}
    assert found["shift"] == 3.0, "of the schedule, which no file contains"


def test_the_velocity_is_that_of_comfyui(found):
    print(found["apart"])
    assert len(found["apart"]) == 8
    assert {what: value for what, value in found["apart"].items() if not value <= LIMIT} == {}


def test_what_is_wrong_is_noticed(found):
    """A tenth in one of six million numbers, or a reference that the model does not see."""
    assert len(found["wrong"]) == 3
    assert {what: value for what, value in found["wrong"].items() if not value > 10 * LIMIT} == {}


def test_a_change_of_any_weight_is_noticed(found):
    """But for the queries of the context in the last layer: that layer has no output for the context."""
    last = "transformer_blocks.2.attn."
    assert found["unnoticed"] == [
        last + name for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
    ]
