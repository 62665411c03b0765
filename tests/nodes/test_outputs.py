"""What ComfyUI's executor does with outputs outside of any node costs nothing, reads nothing and never raises."""

from __future__ import annotations

import re
import shutil
from math import prod
from pathlib import Path

import pytest
from golden import TINY
from probes import run_probe

from deepgen_npu.checkpoint.folder import Checkpoint


@pytest.fixture(scope="module")
def found(checkout, tmp_path_factory) -> dict:
    doomed = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("models") / "doomed"))
    return run_probe(checkout, "outputs_probe.py", doomed, TINY)


def test_every_attribute_can_be_read_though_the_model_is_gone(found):
    assert found["failed"] == []
    checkpoint = Checkpoint.open(TINY)
    assert found["read by the loader"] == len(checkpoint.tensors["transformer"])
    assert found["reads"] == 0
    # The table of positions is no weight; ComfyUI's thousand noise levels count.
    table = prod(checkpoint.tensors["transformer"]["pos_embed.pos_embed"].shape)
    assert found["ram of the loader"] == [(checkpoint.elements("transformer") - table + 1000) * 4, 0]


def test_an_unreadable_vae_is_the_error_of_who_decodes(found):
    assert (
        found["errors of decoding"] == ["CheckpointError"] * 2
        or found["errors of decoding"] == ["FileNotFoundError"] * 2
    )
    assert found["placed in spite of it"] == 0


def test_caches_learn_what_a_pipeline_holds(found):
    """By `get_ram_usage` in 0.8, by the `patcher` in 0.33."""
    checkpoint = Checkpoint.open(TINY)
    nbytes = sum(checkpoint.elements(part) for part in ("connector", "transformer", "vae")) * 4
    assert found["has a patcher"]
    assert found["ram after reading"] > nbytes


def test_files_are_mapped_as_comfyui_maps_those_of_other_models(found):
    disabled, usual = found["mapped"]
    assert disabled == [] and {"transformer", "vlm"} <= set(usual) <= {"transformer", "vlm", "vae"}


def test_a_stage_is_moved_as_a_whole(found):
    known, read = found["size known, size read"]
    assert known == read == found["loaded"]
    assert found["unloaded whole"] and found["loaded after"] == 0


def test_what_no_memory_holds_is_refused_at_once(found):
    in_one_piece, long = found["huge"]
    assert re.fullmatch(
        r"The image needs about \d+\.\d\d GiB in one piece but this computer has 8\.00 GiB: "
        r"use VAE Decode \(Tiled\), or a smaller image\.",
        in_one_piece,
    )
    assert long == "image must have sides from 8 to 16384 pixels, got 32 x 40000."
