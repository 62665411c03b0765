"""A machine on which somebody installed torch_npu, and which has no card: everything runs on its CPU."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from golden import CASES, differences

from deepgen_npu.devices import resolve_device
from deepgen_npu.errors import DeviceError


TOLERANCE = 1e-4  # of tests/deepgen_npu/test_golden.py


def test_torch_npu_loads_and_finds_no_card():
    import torch_npu

    assert torch_npu.__version__ == version("torch_npu")
    assert torch.npu.device_count() == 0
    assert not torch.npu.is_available()


@pytest.mark.parametrize("name", ["npu", "npu:0", "npu:1"])
def test_an_npu_is_refused(name):
    with pytest.raises(DeviceError, match=r"(?s)finds no NPU.*npu-smi info.*To run without an NPU, .*--device cpu"):
        resolve_device(name)


def test_auto_is_the_cpu():
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_original_on_the_cpu(pipe, case, golden_table):
    # diffusers takes the fused norm wherever the package is, whatever the tensor's device: its own model fails here.
    config = pipe.transformer.config
    with pytest.raises(NotImplementedError, match="npu::npu_rms_norm"):
        pipe.transformer(
            hidden_states=torch.randn(1, config.in_channels, 8, 8),
            encoder_hidden_states=torch.randn(1, 4, config.joint_attention_dim),
            pooled_projections=torch.randn(1, config.pooled_projection_dim),
            timestep=torch.tensor([500.0]),
        )

    found = differences(pipe, case)
    golden_table.extend((case, tensor, difference) for tensor, difference in found.items())
    assert {"prompt_embeds", "first_model_output", "final_latents", "image"} <= found.keys()
    assert max(found.values()) <= TOLERANCE, found


def test_an_image_on_the_cpu(pipe):
    image = pipe("a red circle", height=64, width=64, num_inference_steps=2, seed=1).images[0]
    assert image.size == (64, 64)
