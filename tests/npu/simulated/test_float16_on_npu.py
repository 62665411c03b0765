"""A card without bfloat16: ``auto`` is float16, and sums that it cannot hold are in float32."""

from __future__ import annotations

import pytest
import torch
from golden import TINY
from large_sums import difference, with_large_sums

from deepgen_npu import DeepGenPipeline, cli
from deepgen_npu.errors import DeviceError
from deepgen_npu.memory import Workload, activation_bytes
from deepgen_npu.quantization.formats import INT8, LayerFormat
from deepgen_npu.quantization.linear import QuantizedLinear
from deepgen_npu.tools.runs import reference_images
from dev.npu_simulator import simulated


@pytest.fixture
def no_bfloat16(monkeypatch):
    """A 310P, whose kernels refuse tensors in bfloat16."""
    monkeypatch.setattr(simulated, "UNSUPPORTED", simulated.UNSUPPORTED | {torch.bfloat16})
    monkeypatch.setattr(torch.npu, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.npu, "get_device_name", lambda *device: "Ascend310P3 (simulated)")


def latents(pipe: DeepGenPipeline, image=None) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    conditioning = pipe.encode("a red cat", image, "", 64, 64)
    return pipe.denoise(conditioning, pipe.prepare_latents(1, 64, 64, seed=1), 3, 4.0)


@pytest.mark.parametrize("references", [0, 1])
def test_the_whole_model_runs_in_float16(no_bfloat16, references):
    image = reference_images(references, 64, 64) or None
    pipe = DeepGenPipeline.from_pretrained(TINY, device="npu")
    assert pipe.vlm.dtype == pipe.connector.dtype == pipe.transformer.dtype == torch.float16
    assert pipe.vae.dtype == torch.float32
    found = latents(with_large_sums(pipe), image)
    wide = with_large_sums(DeepGenPipeline.from_pretrained(TINY, torch_dtype="float32"))
    expected = latents(wide, image)
    assert found.device.type == "npu" and difference(found, expected) < 0.02
    assert pipe.decode(found)[0].size == (64, 64)
    work = Workload("transformer", 64, 64, 2)
    assert activation_bytes(pipe, work) == activation_bytes(wide, work), "its sums are in float32"
    counts = simulated.state.counts.operators
    assert not [name for name in counts if name.startswith("npu::")], "a 310P has no fused attention"
    assert counts["unfused attention"]


def test_int8_is_dequantised_where_there_are_no_fused_kernels(no_bfloat16):
    layer = QuantizedLinear(LayerFormat(INT8), 32, 8, None).to_empty(device="cpu")
    layer.quantize_(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).half()
    expected = layer(x)
    assert difference(layer.to("npu")(x.to("npu")), expected) < 2e-3


def test_the_fused_operators_are_used_from_the_910b_on(load):
    pipe = load("npu", torch_dtype=torch.float16)
    simulated.reset()
    latents(pipe)
    counts = simulated.state.counts.operators
    assert counts["npu::npu_rms_norm"] and counts["npu::npu_swiglu"] and counts["npu::npu_rotary_mul"]
    assert not counts["unfused attention"]


def test_bfloat16_is_refused_before_anything_is_read(no_bfloat16, capsys):
    with pytest.raises(DeviceError, match=r"dtype bfloat16 cannot be used on npu:0: torch_npu says that Ascend310P3"):
        DeepGenPipeline.from_pretrained(TINY, torch_dtype="bfloat16", device="npu")
    arguments = ["generate", "--model_path", str(TINY), "--prompt", "x", "--device", "npu", "--dtype", "bfloat16"]
    assert cli.main(arguments) != 0
    assert "Choose auto, which is float16." in capsys.readouterr().err


def test_the_command_line_says_why(no_bfloat16, tmp_path, capsys):
    arguments = ["generate", "--model_path", str(TINY), "--prompt", "x", "--device", "npu", "--height", "64"]
    arguments += ["--width", "64", "--num_inference_steps", "1", "--output_image", str(tmp_path / "x.png")]
    assert cli.main(arguments) == 0
    assert "(float16, since torch_npu says that Ascend310P3 (simulated) has no bfloat16)" in capsys.readouterr().out
