"""The native model on a simulated NPU in each ComfyUI: what a step costs, streaming, what is kept, and guards.

The probe measures in the process of ComfyUI; `test_core_samplers` and `test_core_nodes` have real servers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui
from probes import run_probe

from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.larger import DEEP, STREAMED


MOST_LAUNCHES = 830
"""Of a step at the depth of DeepGen 1.0."""

PARTS = (
    *("inherited", "costs", "falls_back", "nothing_stale", "kept_graphs", "guidance_every", "timesteps_of_samplers"),
    *("memory_of_weights", "streaming", "guards"),
)

checkout = each_comfyui("that the native model streams, costs no more than the library and refuses what cannot work")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    write(folder / "deep", DEEP)
    write(folder / "streamed", STREAMED)
    write(folder / "tiny", size="tiny")
    return folder


@pytest.fixture(scope="session")
def found(checkout, models) -> dict[str, Any]:
    found = run_probe(checkout, "native_probe.py", models, *PARTS)
    print(f"ComfyUI {checkout.id}: a step, 24 blocks: {found['step']}")
    for name, is_text, resident, peak, apart in found["streaming"]:
        what = "VLM and connector" if is_text else "DiT"
        print(
            f"ComfyUI {checkout.id}: {what}, room {name}: {resident:.0%} resident, peak {peak:,} bytes, {apart} apart"
        )
    return found


def test_nothing_is_inherited_but_names(found):
    """Of the two classes by which ComfyUI knows the names of LoRA keys."""
    assert found["inherited"] == []


def test_a_step_costs_what_the_librarys_does(found):
    native, library = found["step"]["native"], found["step"]["library"]
    assert 700 < library["launches"] < native["launches"] <= MOST_LAUNCHES
    assert (native["copies"], native["copies back"], native["waits"]) == (0, 0, 0)
    assert found["step"]["apart from ComfyUI's sums"] == 0


def test_a_captured_step_is_a_replay(found):
    step = found["step"]
    assert step["captured"]["launches"] <= 20
    assert (step["captured"]["copies"], step["captured"]["waits"]) == (0, 0)
    assert step["replays"] == 4 and step["apart when captured"] == 0


def test_what_cannot_be_captured_falls_back(found):
    ways = found["falls back"]
    for name, replays in (("a replaced block", 0), ("a LoRA", 4), ("a wrapper", 0), ("streaming", 0)):
        assert ways[name][:2] == [0, replays], name
    assert ways["a replaced block"][2] > 0 and ways["a LoRA"][2] > 0 and ways["a wrapper"][2] < 1e-4


def test_nothing_kept_is_stale(found):
    assert max(found["stale"]) <= 1e-4 < found["a change"]
    assert found["base again"] == 0


def test_graphs_are_kept_while_weights_stay(found):
    """The second sampling replays the first one's graph; ComfyUI patches the weights for the LoRA, and back."""
    kept = found["kept graphs"]
    assert kept["apart"] == [0] * 6
    captured, *later = kept["launched"]
    assert captured > 0 and later == [0, 0, captured, captured, captured]
    names = ("kept", "on a full card", "again", "after unloading")
    assert [kept[name] for name in names] == [1, 0, 1, 0]


def test_weights_laid_together_are_on_the_card_once(found):
    """With a LoRA, too. Where those from before it stay on the card (--gpu-only), layers run apart."""
    *with_cpu, plain, lora, again = found["besides weights"]
    assert [abs(besides) < 4096 and apart == 0 for besides, _, apart in (*with_cpu, plain, again)] == [True] * 5
    besides, kept, apart = lora
    assert kept > 4096 and abs(besides - kept) < 4096 and apart > 0


def test_a_weight_that_is_computed_has_its_effect(found):
    """As those of a LoRA in training, also in a layer that lies together with others."""
    assert found["a weight that is computed"] > 1e-3


def test_guidance_every_is_the_librarys(found):
    """The node with KSampler's euler; and with 1 it is no node at all."""
    row = found["guidance every"]
    assert row["by the library"] < 1e-4 and row["a change"] > 1e-3
    assert row["with 1"] == row["unguided"] == 0


def test_guidance_every_has_two_graphs_and_costs_a_sum(found):
    row = found["guidance every"]
    assert (row["graphs"], row["replays"], row["launched"]) == ([False, True], 4, 0)  # in between, or not
    assert row["captured"] == row["captured again"] == 0
    left_out, unguided = row["steps"]
    assert unguided[0] > 100 and left_out == [unguided[0] + 1, 0, 0]
    assert row["with a LoRA"] == 0


def test_guidance_every_counts_evaluations(found):
    """Of heun two a step but the last."""
    assert found["guidance every"]["heun"] == [2, 1, 2, 1, 2]


def test_where_guidance_every_has_no_effect_the_log_says_so(found):
    """Of several prompts, with a wrapper, and where another node evaluates; not of plain samplings."""
    row = found["guidance every"]
    assert row["without effect"] == [0, 0, 0]
    reasons = ("there are several prompts", "another node stands between", "another node evaluates the prompts")
    for reason, message in zip(reasons, row["log"], strict=True):
        assert message.startswith(f"DeepGen Guidance Every has no effect on this sampling, since {reason}")


def test_samplers_evaluate_at_the_timestep_of_their_step(found):
    """Those for which modulation is computed ahead."""
    known = {name: value for name, value in found["samplers"].items() if value != "unknown"}
    assert {"euler", "dpmpp_2m", "lcm", "res_multistep"} <= known.keys()
    for name, (steps, apart) in known.items():
        assert steps == [0, 1, 2, 3, 4, 5] and apart == 0, name


def test_weights_stream_to_the_bit(found, checkout):
    """Budgets of the weights by ComfyUI's own report of memory, and its modes for small cards."""
    rows = found["streaming"]
    assert [apart for *_, apart in rows] == [0] * 12
    for name, is_text, resident, peak, _ in rows:
        size = found["sizes"][0 if is_text else 1]
        if name in ("110%", "LOW_VRAM"):
            assert resident == 1
            continue
        share = 0 if name == "NO_VRAM" else int(name.rstrip("%")) / 100
        # ComfyUI 0.3.64 gives a model 128 MiB at least.
        least = 128 * 2**20 / size if checkout.version_tuple < (0, 8) and name != "NO_VRAM" else 0
        assert resident <= max(share, least)
        assert resident > 0 or not share
        assert peak < size * max(resident, least) + 0.1 * size


def test_the_table_of_positions_stays_on_the_host(found):
    assert found["table"] == ["cpu", False]


def test_everything_leaves_the_card(found):
    left, devices = found["after unload"]
    assert left < 1 << 20 and devices == ["cpu"]


def test_memory_that_runs_out_names_a_size_that_fits(found):
    error = found["out of memory"]
    assert error.startswith("OutOfDeviceMemory: Out of memory on npu:0 in the transformer (640 x 960 pixels, 4 rows")
    assert re.search(r"choose a smaller size \(about \d+ x \d+ would fit\), or make fewer images at once", error)
    size, error = found["a size that fits"]
    assert error == "" and 30 < size[3] < size[2]


def test_latents_that_are_not_finite_name_the_weights(found):
    error = found["not finite"]
    assert error.startswith(
        "FloatingPointError: The latents became NaN or infinite, since transformer_blocks.1.attn.to_k"
    )
    assert found["finite again"] == ""


REFUSALS = (
    "latent_image must have the shape [batch, 16, height, width], got [1, 4, 8, 8]. Make it with DeepGen",
    "latent_image must have sides of at most 128 latent cells with this model, got 200 x 8. The latent of",
    "conditioning: embeds must have the shape [batch, tokens, 64], got [1, 5, 7]. Connect positive and negative of",
    "conditioning: pooled_output must be a tensor, got NoneType. Connect positive and negative of",
    "ControlNet is not supported by DeepGen: remove Apply ControlNet. To keep parts of an image, use a noise mask",
    "model must have timesteps from 0 to 1000, got 0 to 1. Remove the node that changes it (for AuraFlow, Flux and",
)


@pytest.mark.parametrize("number", range(len(REFUSALS)))
def test_what_cannot_work_says_so(found, number):
    assert found["refused"][number].startswith(f"ValueError: {REFUSALS[number]}")


def test_a_patch_without_effect_is_named_once(found):
    (warning,) = found["without effect"]
    assert warning.startswith(
        "These patches of the MODEL have no effect on DeepGen, which has no such place: attn1_patch, "
    )
    assert "double_block 99, single_block 1. Remove the node" in warning
