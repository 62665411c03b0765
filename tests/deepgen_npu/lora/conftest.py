"""A pipeline of the tiny checkpoint that these tests change, and give back as it was."""

from __future__ import annotations

from collections.abc import Iterator

import lora_files
import pytest
import torch
from golden import TINY

from deepgen_npu import DeepGenPipeline


@pytest.fixture(scope="package")
def loaded() -> tuple[DeepGenPipeline, dict[str, torch.Tensor]]:
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.encodings.max_bytes = 1 << 20
    return pipe, lora_files.state(pipe.transformer)


@pytest.fixture
def own(loaded) -> Iterator[DeepGenPipeline]:
    """In float32 on the CPU; after each test, unloading must have restored its bits."""
    pipe, before = loaded
    yield pipe
    pipe.unload_lora_weights()
    after = lora_files.state(pipe.transformer)
    pipe.transformer.load_state_dict(before)
    assert lora_files.equal(after, before)


@pytest.fixture
def before(loaded) -> dict[str, torch.Tensor]:
    """The DiT's tensors as the checkpoint has them."""
    return loaded[1]
