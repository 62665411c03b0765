"""Peaks by the simulated device's counter, and what happens when a card is out of memory."""

from __future__ import annotations

import gc
import re

import pytest
import torch
from golden import differences, load_case

from deepgen_npu.checkpoint.folder import PARTS
from deepgen_npu.memory import OutOfDeviceMemory, Workload, activation_bytes
from dev.npu_simulator.simulated import state


GIB = 1 << 30


def weights(pipe, part: str) -> int:
    tensors = pipe.components[part].state_dict().values()
    return sum(tensor.nbytes for tensor in tensors)


def draw(pipe, side: int = 64, **options):
    return pipe("a red circle", height=side, width=side, num_inference_steps=2, seed=0, **options).images[0]


def peak_while(run) -> int:
    """Most bytes allocated on npu:0 above what there was before."""
    gc.collect()
    memory = state.memory[0]
    before = memory.peak = memory.now
    run()
    return memory.peak - before


def test_offload_peaks_at_the_largest_part_and_its_activations(load, counts_table, monkeypatch):
    expected = draw(load("npu:0"))
    gc.collect()
    pipe = load("cpu")
    pipe.enable_model_cpu_offload("npu:0")
    before = state.memory[0].now
    monkeypatch.setattr("deepgen_npu.memory.MODULATION_BYTES", 0)
    activations = max(activation_bytes(pipe, Workload(part, 64, 64, rows=2, text_tokens=64)) for part in PARTS)
    peak = peak_while(lambda: draw(pipe))
    assert state.memory[0].now == before, "all parts went back"
    largest, everything = (how(weights(pipe, part) for part in PARTS) for how in (max, sum))
    counts_table.append(
        ("peak with offload", f"{peak:,} bytes; the largest part has {largest:,}, all have {everything:,}")
    )
    assert largest < peak <= largest + activations
    assert draw(pipe).tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", ["edit", "t2i_batch"])
def test_offload_agrees_with_the_original(load, case):
    pipe = load("cpu")
    pipe.enable_model_cpu_offload("npu:0")
    assert max(differences(pipe, case).values()) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_stay_below_their_estimates(load, counts_table, monkeypatch, dtype):
    """At several sizes, so that the estimate grows as the peak does. With float16 sums are in float32."""
    monkeypatch.setattr("deepgen_npu.memory.MODULATION_BYTES", 0)  # one step of so narrow a model has next to none
    pipe = load("npu:0", torch_dtype=dtype)
    reference = load_case("edit")[1][0]
    sizes = ((192, 0), (384, 0), (384, 1), (384, 2))
    for side, count in sizes if dtype == torch.bfloat16 else sizes[2:3]:
        images = [reference] * count
        held = {}

        def encode(side=side, images=images, held=held):
            held["conditioning"] = pipe.encode("a red circle", images or None, "", side, side)

        def denoise(side=side, held=held):
            noise = pipe.prepare_latents(1, side, side, seed=0)
            held["latents"] = pipe.denoise(held["conditioning"], noise, 1, 4.0)

        def decode(held=held):
            held["pixels"] = pipe.decode_latents(held["latents"])

        tokens = 64 + pipe.connector.num_queries

        def estimate(part: str, side=side, count=count, tokens=tokens) -> int:
            return activation_bytes(pipe, Workload(part, side, side, 2, count, tokens))

        text = max(estimate("vlm"), estimate("connector"), estimate("vae") if count else 0)
        for stage, run, bound in (
            ("encode", encode, text),
            ("denoise", denoise, estimate("transformer")),
            ("decode", decode, estimate("vae")),
        ):
            peak = peak_while(run)
            what = f"{stage} at {side} x {side}, {count} reference(s), {str(dtype)[6:]}"
            counts_table.append((what, f"peak {peak / 2**20:.1f} MiB, estimate {bound / 2**20:.1f} MiB"))
            assert bound / 12 < peak <= bound, what


def test_a_full_card_is_freed_and_the_stage_runs_again(load, caplog):
    """All parts together leave no room for the DiT's activations; taking turns, they do."""
    pipe = load("npu:0")
    expected = draw(pipe, side=256)
    gc.collect()
    needed = peak_while(lambda: draw(pipe, side=256))
    memory = state.memory[0]
    memory.total = memory.now + needed - 1024
    assert draw(pipe, side=256).tobytes() == expected.tobytes()
    (record,) = caplog.records
    expected_words = (
        "npu:0 is out of memory: from now on its parts (vlm, connector, transformer, vae) are offloaded to"
    )
    assert record.getMessage().startswith(expected_words) and "--offload" in record.getMessage()
    assert draw(pipe, side=256).tobytes() == expected.tobytes()
    assert len(caplog.records) == 1, "said once"


@pytest.mark.parametrize("size", [(384, 256), (192, 384)], ids=str)
def test_what_does_not_fit_is_reported_with_a_size_that_does(load, monkeypatch, size):
    monkeypatch.setattr("deepgen_npu.memory.MODULATION_BYTES", 0)
    pipe = load("npu:0", torch_dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload("npu:0")
    gc.collect()
    memory, plenty = state.memory[0], state.memory[0].total

    def denoise(width: int, height: int) -> torch.Tensor:
        memory.total = plenty
        conditioning = pipe.encode(["a red circle"] * 2, None, "", height, width)
        noise = pipe.prepare_latents(2, height, width, seed=0)
        pipe.placement.release()
        tokens = conditioning.prompt_embeds.shape[1]
        memory.total = memory.now + weights(pipe, "transformer")
        memory.total += activation_bytes(pipe, Workload("transformer", 96, 96, 4, 0, tokens))
        return pipe.denoise(conditioning, noise, 1)

    with pytest.raises(OutOfDeviceMemory) as caught:
        denoise(*size)
    message = str(caught.value)
    width, height = size
    assert f"Out of memory on npu:0 in the transformer ({width} x {height} pixels, 4 rows at once)" in message
    assert "make fewer images at once" in message and "references" not in message
    assert re.search(
        r"With all else moved out, [\d.]+ [GMK]iB of [\d.]+ [GMK]iB are free on top of its weights\.", message
    )
    # What is typed in as width and height has the shape that was asked for, and fits.
    fitting = tuple(map(int, re.search(r"about (\d+) x (\d+) would fit", message).groups()))
    longer, shorter = (fitting.index(max(fitting)), fitting.index(min(fitting)))
    assert (longer, shorter) == (size.index(max(size)), size.index(min(size)))
    assert 96 <= fitting[longer] < 384 and 0 <= fitting[longer] / size[longer] * size[shorter] - fitting[shorter] < 16
    del caught
    gc.collect()
    denoise(*fitting)


def test_weights_that_do_not_fit_are_named(load):
    pipe = load("cpu")
    pipe.enable_model_cpu_offload("npu:0")
    gc.collect()
    state.memory[0].total = state.memory[0].now + weights(pipe, "vlm") // 2
    with pytest.raises(OutOfDeviceMemory, match="the weights of the vlm alone do not fit"):
        draw(pipe)


def test_other_errors_are_not_tried_again(on_npu, monkeypatch):
    calls = []

    def broken(*arguments, **options):
        calls.append(1)
        raise RuntimeError("aclnnMatmul failed")

    monkeypatch.setattr(on_npu.vae, "decode", broken)
    with pytest.raises(RuntimeError, match="aclnnMatmul failed"):
        on_npu.decode_latents(torch.zeros(1, 16, 8, 8))
    assert calls == [1]


def test_tiles_save_memory(load, counts_table):
    """How far tiles are from the whole is measured in tests/deepgen_npu, on a trained VAE."""
    pipe = load("npu:0")
    side = pipe.vae.config["sample_size"] // 8
    latents = torch.randn(1, 16, 4 * side, 4 * side, generator=torch.Generator().manual_seed(0))
    whole = peak_while(lambda: pipe.decode_latents(latents))
    pipe.enable_vae_tiling()
    tiled = peak_while(lambda: pipe.decode_latents(latents))
    counts_table.append(("decoding in 36 tiles", f"peak {tiled / 2**20:.1f} MiB instead of {whole / 2**20:.1f}"))
    assert tiled < 0.5 * whole


def test_several_images_are_decoded_one_by_one(load):
    pipe = load("npu:0")
    latents = torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    one, four = (peak_while(lambda count=count: pipe.decode_latents(latents[:count])) for count in (1, 4))
    assert four < 1.5 * one
