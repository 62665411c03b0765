"""On a card: memory of each part and of each stage, and the tables of `bench`. Times are reported, never judged."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from deepgen_npu.checkpoint.folder import PARTS
from deepgen_npu.devices import empty_cache, free_memory, memory_allocated
from deepgen_npu.memory import Workload, activation_bytes
from deepgen_npu.tools.bench import as_markdown, measure
from deepgen_npu.tools.random_model import RandomModel
from deepgen_npu.tools.runs import RunSettings


SIZE = os.environ.get("DEEPGEN_HARDWARE_SIZE", "published")


@pytest.fixture(scope="module")
def model() -> RandomModel:
    return RandomModel.of_size(SIZE)


@pytest.fixture(scope="module")
def pipe(device, model):
    needed = model.nbytes(torch.bfloat16)
    free, _ = free_memory(device)
    assert needed < free, f"{needed:,} bytes of weights, {free:,} free; choose another DEEPGEN_HARDWARE_SIZE"
    pipe = model.load(torch.bfloat16, dict.fromkeys(PARTS, device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def settings(references: int) -> RunSettings:
    side = 64 if SIZE == "tiny" else 512
    return RunSettings("a photo of a blue pizza", side, side, 42, 50 if SIZE == "published" else 4, 4.0, references)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_takes_the_memory_of_its_weights(device, pipe, part, hardware_table):
    module = getattr(pipe, part)
    # The table of positions stays on the host.
    sizes = [tensor.nbytes for tensor in (*module.parameters(), *module.buffers()) if tensor.device == device]
    weights = sum(sizes)
    gc.collect()
    before = memory_allocated(device)
    module.to("cpu")
    gc.collect()
    freed = before - memory_allocated(device)
    module.to(device)
    hardware_table.append((f"memory of {part}", f"{freed / 2**20:,.1f} MiB, weights {weights / 2**20:,.1f} MiB"))
    # Each tensor is rounded up to 512 bytes; a large one may keep a remainder that is not worth splitting off
    # (PyTorch's caching allocators: less than 1 MiB).
    rounding = sum(512 + (2**20 if size > 2**20 else 0) for size in sizes)
    assert weights <= freed <= weights + rounding


@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize("captured", [False, True])
def test_time_and_peaks(device, pipe, references, captured, hardware_table):
    pipe.capture_graph = captured
    run = settings(references)
    gc.collect()
    before = memory_allocated(device)  # the weights, and whatever else is on the card
    assert before is not None
    result = measure(pipe, device, run, count=3 if SIZE == "published" else 1)
    what = f"{references} reference(s), {'captured' if captured else 'eager'}"
    for line in as_markdown(result).splitlines():
        hardware_table.append((what, line))
    assert result.peaks is not None
    tokens = 256 + pipe.connector.num_queries
    graph = 0
    for stage, part in (("denoise", "transformer"), ("decode", "vae")):
        estimate = activation_bytes(pipe, Workload(part, run.height, run.width, 2, references, tokens))
        if captured and stage == "denoise":
            graph = estimate  # which also keeps the memory of its warm-up, and is kept while the image is decoded
        peak = result.peaks[stage] - before
        hardware_table.append(
            (what, f"{stage}: {peak / 2**20:,.0f} MiB on top of the weights, estimated {estimate / 2**20:,.0f}")
        )
        assert peak <= estimate + graph * (1 if stage == "denoise" else 2)


def test_a_pipeline_leaves_nothing_behind(device, model):
    gc.collect()
    before = memory_allocated(device)
    small = RandomModel.of_size("tiny").load(torch.bfloat16, dict.fromkeys(PARTS, device))
    small.set_progress_bar_config(disable=True)
    small.capture_graph = True
    small("a red circle", height=64, width=64, num_inference_steps=2, seed=0)
    del small
    gc.collect()
    empty_cache(device)
    # A workspace of the matrix library may stay.
    assert memory_allocated(device) - before <= 64 * 2**20
