"""Choosing the card, its settings and its memory, through the real torch.npu."""

from __future__ import annotations

import threading

import pytest
import torch

from deepgen_npu import devices
from deepgen_npu.devices import resolve_device, resolve_dtype
from deepgen_npu.errors import DeviceError


CARD = torch.device("npu", 0)
MEBIBYTE = 1024**2
TOTAL = 8 * 1024**3  # of acl_stub.c


def test_auto_is_the_card():
    assert resolve_device("auto") == resolve_device("npu") == resolve_device("npu:0") == CARD
    assert resolve_dtype("auto", CARD) == torch.bfloat16


def test_a_second_card_is_refused():
    with pytest.raises(DeviceError, match=r"^npu:1 does not exist: this machine has npu:0\. ASCEND_RT"):
        resolve_device("npu:1")


@pytest.mark.parametrize(
    "set_up", [lambda: resolve_device("npu"), lambda: devices.prepare_thread(CARD)], ids=["choice", "thread"]
)
def test_settings(set_up):
    import torch_npu

    torch.npu.set_compile_mode(jit_compile=True)
    torch.npu.config.allow_internal_format = True
    assert not torch.npu.is_jit_compile_false()
    set_up()
    assert torch.npu.is_jit_compile_false()
    # torch.npu.config can only be written.
    assert torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"disable"


def test_a_thread_gets_the_card_and_the_settings(npu_pipe, monkeypatch):
    """As in ComfyUI, which loads in one thread and runs in another."""
    calls = []
    for name in ("set_device", "set_compile_mode"):
        original = getattr(torch.npu, name)

        def spy(*args, name=name, original=original, **kwargs):
            calls.append((name, threading.current_thread().name))
            return original(*args, **kwargs)

        monkeypatch.setattr(torch.npu, name, spy)
    images = []

    def work():
        call = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 1, "output_type": "pt"}
        images.append(npu_pipe("a red circle", **call).images)

    work()
    calls.clear()
    worker = threading.Thread(target=work, name="worker")
    worker.start()
    worker.join()
    assert {("set_device", "worker"), ("set_compile_mode", "worker")} == set(calls)
    assert len(images) == 2 and torch.equal(*images)


def test_memory():
    devices.empty_cache(CARD)
    before = devices.memory_allocated(CARD)
    devices.reset_peak_memory(CARD)
    assert devices.peak_memory(CARD) == before
    free, total = devices.free_memory(CARD)
    assert total == TOTAL

    tensor = torch.empty(64 * MEBIBYTE, dtype=torch.uint8, device=CARD)
    assert 64 * MEBIBYTE <= devices.memory_allocated(CARD) - before < 65 * MEBIBYTE
    assert free - devices.free_memory(CARD)[0] >= 64 * MEBIBYTE

    del tensor
    devices.synchronize(CARD)
    assert devices.memory_allocated(CARD) == before
    assert devices.peak_memory(CARD) - before >= 64 * MEBIBYTE
    assert free - devices.free_memory(CARD)[0] >= 64 * MEBIBYTE  # the allocator keeps it
    devices.empty_cache(CARD)
    assert devices.free_memory(CARD)[0] == free


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(TOTAL + 1, dtype=torch.uint8, device=CARD)
    assert devices.is_out_of_memory(raised.value)


def test_name():
    assert devices.device_name(CARD) == "Ascend910B3"


def test_a_generator_of_the_card_draws_there_in_the_models_dtype():
    noise = devices.random_noise((1, 16, 4, 4), torch.Generator("npu"), torch.bfloat16)
    assert noise.device == CARD and noise.dtype == torch.bfloat16
    assert noise.float().std().item() > 0.5


def test_tensors_of_two_devices_are_refused():
    """Of the stand-in itself: it must not forgive what a card does not."""
    with pytest.raises(RuntimeError, match="npu:0 and cpu"):
        torch.ones(2, device=CARD) + torch.ones(2)
