"""On a card: what went through pinned memory are the bits of the files."""

from __future__ import annotations

import pytest
import torch
from golden import TINY

from deepgen_npu import Checkpoint
from deepgen_npu.checkpoint import reading
from deepgen_npu.checkpoint.staging import Staging
from deepgen_npu.checkpoint.weights import load_part


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_arrive(device, dtype, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 1 << 12)  # many pieces, of which two are under way
    assert Staging.to(device, 1 << 12) is not None, "the card copies from pinned memory"
    checkpoint = Checkpoint.open(TINY)
    for part in ("connector", "vae"):
        ours, expected = (load_part(checkpoint, part, dtype, where).state_dict() for where in (device, "cpu"))
        for name, tensor in expected.items():
            assert torch.equal(ours[name].cpu(), tensor), name
