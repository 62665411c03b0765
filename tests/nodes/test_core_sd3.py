"""Our DiT against ComfyUI's own SD3, an implementation that shares nothing with the stock one but the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui
from probes import run_probe

from deepgen_npu.cli import main
from deepgen_npu.quantization.formats import FORMATS
from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.checkouts import Checkout
from dev.comfyui.larger import SD3


LIMIT = 1e-5

checkout = each_comfyui("that the DiT computes what ComfyUI's own SD3 computes")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A checkpoint with heads of 64, as many as blocks, and its DiT in a file of its own in each format."""
    folder = tmp_path_factory.mktemp("sd3")
    write(folder / "checkpoint", SD3)
    for title in FORMATS:
        arguments = [str(folder / "checkpoint"), str(folder / f"{title}.safetensors"), "--format", title]
        assert main(["quantize", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def found(checkout: Checkout, made: Path) -> dict[str, Any]:
    """What the probe found. It ends with an error where ComfyUI does not read the DiT as its class SD3."""
    return run_probe(checkout, "core_sd3_probe.py", LIMIT, made, timeout=300)


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


def test_a_quantised_file_draws_the_same(found, checkout):
    """With the names of SD3's reference implementation: queries, keys and values in one layer."""
    print(found["quantised"])
    if checkout.id.startswith("0.3."):
        assert found["quantised"] == {}  # it has no operators for them
        return
    assert found["quantised"].keys() >= {"fp8"}
    assert all(value < (0.1 if title == "fp8" else 0.03) for title, value in found["quantised"].items())
