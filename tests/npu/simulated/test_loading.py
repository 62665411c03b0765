"""Weights on their way to a card: through pinned memory, while the next piece is read."""

from __future__ import annotations

import pytest
import torch
from golden import TINY

from deepgen_npu import Checkpoint, DeepGenPipeline
from deepgen_npu.checkpoint import reading
from deepgen_npu.checkpoint.folder import PARTS
from deepgen_npu.checkpoint.weights import load_part
from deepgen_npu.dtypes import stored_dtype
from deepgen_npu.model.positions import STAYS_ON_HOST
from dev.npu_simulator.simulated import Tensor, state
from dev.npu_simulator.simulated_copies import outstanding


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Many for each large tensor, and many small ones that share no piece."""
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 1 << 12)


@pytest.fixture
def meanwhile(monkeypatch) -> list[int]:
    """How many copies were under way while each piece was read into pinned memory."""
    counts: list[int] = []
    read_into = reading._read_into

    def read(file, target, stored):
        if target.is_pinned():
            counts.append(len(outstanding))
        read_into(file, target, stored)

    monkeypatch.setattr(reading, "_read_into", read)
    return counts


def check_equal(part: str, dtype: torch.dtype, device: str) -> None:
    """The same bits as on the CPU, and of the same dtype."""
    ours, expected = (load_part(Checkpoint.open(TINY), part, dtype, where).state_dict() for where in (device, "cpu"))
    for name, tensor in expected.items():
        assert torch.equal(ours[name].cpu(), tensor) and ours[name].dtype == tensor.dtype, name


@pytest.mark.parametrize(("dtype", "device"), [(torch.bfloat16, "npu:0"), (torch.float32, "npu:1")])
def test_every_byte_arrives_while_the_next_are_read(meanwhile, dtype, device):
    read: list[int] = []
    checkpoint = Checkpoint.open(TINY)
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=dtype, device=device, on_bytes_read=read.append)
    assert outstanding == [], "the loader has waited"
    computed = sum(buffer.nbytes for buffer in pipe.vlm.buffers())  # rotary frequencies, which no file has
    waited = state.counts.host_to_device[1] - state.counts.unwaited[1]
    assert waited == computed, "no weight held the host up"
    on_host = checkpoint.tensors["transformer"][STAYS_ON_HOST]
    assert state.counts.unwaited[1] == checkpoint.nbytes() - on_host.nbytes, "as they are stored: the card casts them"
    assert sum(read) == checkpoint.nbytes()
    assert meanwhile.count(0) == len(PARTS) and set(meanwhile) == {0, 1}, "all but the first piece of each part"
    for part in PARTS:
        expected = load_part(checkpoint, part, dtype).state_dict()
        for name, tensor in pipe.components[part].state_dict().items():
            assert torch.equal(tensor.cpu(), expected[name]) and tensor.dtype == expected[name].dtype, name


def test_a_load_that_ends_early_has_waited():
    def stop(count: int) -> None:
        assert outstanding
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_part(Checkpoint.open(TINY), "vae", torch.bfloat16, "npu:0", stop)
    assert outstanding == []


def test_where_no_memory_can_be_pinned(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("aclrtMallocHost failed")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    check_equal("vae", torch.bfloat16, "npu:0")
    check_equal("vae", torch.float32, "npu:0")
    assert state.counts.unwaited == [0, 0] and state.counts.host_to_device[0] > 0


def test_a_card_without_the_stored_dtype_never_sees_it(monkeypatch):
    """Cards before the 910B have no bfloat16, in which the model is published."""
    monkeypatch.setattr(torch.npu, "is_bf16_supported", lambda: False)
    seen = set()
    new = Tensor.__new__

    def watched(cls, t, *arguments, **options):
        seen.add(t.dtype)
        return new(cls, t, *arguments, **options)

    monkeypatch.setattr(Tensor, "__new__", watched)
    stored = {stored_dtype(tensor.dtype) for tensor in Checkpoint.open(TINY).tensors["vae"].values()}
    check_equal("vae", torch.float16, "npu:0")
    assert stored == {torch.bfloat16} and seen == {torch.float16}
    check_equal("connector", torch.float16, "npu:0")
    assert torch.float32 in seen, "the card casts what it has"
