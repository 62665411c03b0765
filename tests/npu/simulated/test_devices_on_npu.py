"""Which card, and what is set up in which thread."""

from __future__ import annotations

import threading

import pytest
import torch
from golden import load_case

from deepgen_npu.devices import device_name, free_memory, resolve_device, resolve_dtype
from deepgen_npu.errors import DeviceError
from dev.npu_simulator.simulated import reset, state


def test_names_of_cards():
    assert resolve_device("npu") == resolve_device("auto") == torch.device("npu:0")
    assert resolve_device("npu:1") == torch.device("npu:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"^npu:2 does not exist: this machine has npu:0 to npu:1\. ASCEND_RT"):
        resolve_device("npu:2")
    assert resolve_dtype("auto", torch.device("npu")) == torch.bfloat16
    assert device_name(torch.device("npu:1")) == "Ascend910B3 (simulated)"
    free, total = free_memory(torch.device("npu:1"))
    assert 0 < free <= total == 64 << 30


@pytest.mark.parametrize("card", [0, 1])
def test_a_worker_thread_is_set_up_before_it_works(load, card):
    """ComfyUI loads packs in one thread and runs prompts in another; contexts belong to threads."""
    pipe = load(f"npu:{card}")
    seen = {}

    def work():
        pipe("a red circle", height=64, width=64, num_inference_steps=1, seed=0, output_type="latent")
        seen["settings"] = torch.npu.SETTINGS.get(threading.get_ident())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen["settings"] == {"device": card, "jit_compile": False, "allow_internal_format": False}


def test_encoding_waits_seldom(on_npu, counts_table):
    """The original reads windows and positions back from the device, some 66 times for two images."""
    call, references, _ = load_case("edit")
    call.pop("num_inference_steps"), call.pop("guidance_scale")
    on_npu.encode(image=references, **call)
    counts = state.counts
    counts_table.append(
        (
            f"encoding an edit with {len(references)} reference(s)",
            f"{counts.launches()} launches, {counts.host_to_device[0]} copies to the device, "
            f"{sum(counts.waits.values())} waits",
        )
    )
    assert sum(counts.waits.values()) == 0, counts.waits
    assert counts.host_to_device[0] <= 40


def test_decoding_waits_once_for_the_check_of_its_values(on_npu):
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    on_npu.decode_latents(latents)
    assert sum(state.counts.waits.values()) == 1, state.counts.waits


def test_copies_leave_the_card_in_inference_mode():
    """There ``to`` with a device and a dtype is one operator of its own."""
    with torch.inference_mode():
        tensor = torch.ones(3, device="npu")
        reset()
        copy = tensor.to(torch.device("cpu"), torch.bfloat16)
        assert copy.device.type == "cpu" and copy.tolist() == [1, 1, 1]
        assert state.counts.device_to_host == [1, 6]
        assert tensor.to(torch.device("npu", 0), torch.float16).device == tensor.device
