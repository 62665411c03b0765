"""Two cards in ComfyUI: VLM and connector on the second one, and the branches of guidance on one each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui
from probes import run_probe

from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.checkouts import Checkout


checkout = each_comfyui("that two cards make the images of one")


@pytest.fixture(scope="session")
def found(checkout: Checkout, tmp_path_factory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("cards")
    write(folder / "tiny", size="tiny")
    return run_probe(checkout, "cards_probe.py", folder, "text_encoder", "guidance", "missing")


def test_vlm_and_connector_run_on_the_second_card(found):
    """The same bits; and in the thread, ComfyUI goes on with its own card."""
    text = found["text encoder"]
    assert text["apart"] == 0
    assert text["loaded on"] == ["npu:0", "npu:1"] and text["device"] == "npu:1"
    assert text["second card"] >= text["size"] > 0, "its weights are there"
    assert (text["current"], text["comfyui runs on"]) == (0, "npu:0")


def test_a_second_card_without_memory_is_emptied(found):
    again = found["text encoder"]["after running out of memory"]
    assert again == {"left there": [0], "apart": 0, "current": 0}


def test_each_branch_of_guidance_runs_on_a_card(found, checkout):
    """By ComfyUI's MultiGPU CFG Split: the bits of one card that evaluates the branches one after the other."""
    if checkout.version_tuple < (0, 33):
        assert "guidance" not in found
        return
    rows = found["guidance"]
    for name, replays in (("launched", 0), ("captured", 16)):
        assert rows[name]["cards"] == ["npu:0", "npu:1"]
        assert rows[name]["apart"] == [0, 0]
        assert (rows[name]["replays"], rows[name]["current"]) == (replays, 0)
        # In two of four steps the second card rests: else latents and sigma go there, and denoised latents come back.
        assert rows[name]["every second"] == 0 < rows[name]["a change"]
        assert rows[name]["its replays"] == (6 if replays else 0)
        assert rows[name]["between cards"] == 2 * 3 + 4, "and the conditioning, once"
    threads = [row for name, row in rows.items() if name.startswith("in threads")]
    assert len(threads) == 2
    for row in threads:
        assert row["apart"][0] < 1e-4 and row["replays"] == 0


def test_a_card_that_is_not_there_is_the_default(found):
    missing = found["missing"]
    assert missing["devices"] == {
        "default": "npu:0",
        "cpu": "cpu",
        "gpu:0": "npu:0",
        "gpu:1": "npu:1",
        "gpu:7": "npu:0",
    }
    assert missing["log"] == ["DeepGen: this machine has no gpu:7, so the text encoder runs on npu:0."]
