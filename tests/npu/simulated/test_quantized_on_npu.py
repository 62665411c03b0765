"""Quantised weights on an NPU: every layer goes through the int8 operators, and what they compute is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden import TINY, denoised
from safetensors.torch import save_file
from torch import Tensor, nn

from deepgen_npu import DeepGenPipeline
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.errors import DeviceError
from deepgen_npu.quantization import linear
from deepgen_npu.quantization.formats import INT8, LayerFormat
from deepgen_npu.quantization.layers import PARTS
from deepgen_npu.quantization.linear import QuantizedLinear, quantized_layers, replace_layers
from deepgen_npu.tools.quantize import plan, quantize
from dev.npu_simulator.simulated import state


NPU = torch.device("npu:0")
_ROTATE_QUANT = linear.rotate_quant
QUANT, MATMUL, ROTATE = "npu::npu_dynamic_quant", "npu::npu_quant_matmul", "npu::npu_rotate_quant"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The tiny checkpoint in each format."""
    made = {}
    for title in ("int8_convrot", "int8", "fp8"):
        source = Checkpoint.open(TINY)
        made[title] = tmp_path_factory.mktemp("quantized") / title
        quantize(source, made[title], plan(source, title, PARTS))
    return made


def load(folder: Path, **options) -> DeepGenPipeline:
    pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DeepGenPipeline, steps: int) -> Tensor:
    latents = pipe("a red circle", num_inference_steps=steps, seed=1, height=64, width=64, output_type="latent").images
    assert isinstance(latents, Tensor)
    return latents.float().cpu()


@pytest.mark.parametrize("title", ["int8_convrot", "int8"])
def test_no_layer_is_dequantised(folders, title, counts_table):
    pipe = load(folders[title], device="npu")
    counts = []
    for steps in (1, 2):
        state.counts.operators.clear()
        draw(pipe, steps)
        counts.append([state.counts.operators[name] for name in (MATMUL, QUANT, ROTATE)])
    matmul, quant, rotated = (after - before for before, after in zip(*counts, strict=True))
    layers = quantized_layers(pipe.transformer)
    # All of the DiT's in a step; those whose input does not change, none; and not the last block's queries of the
    # context, which nothing reads.
    assert matmul == quant + rotated == len(layers) - 1
    assert bool(rotated) == (title == "int8_convrot")
    words = f"{matmul} x npu_quant_matmul, {quant} x npu_dynamic_quant, {rotated} x npu_rotate_quant"
    counts_table.append((f"int8 operators of a step with {len(layers)} layers in {title}", words))


def test_the_result_is_that_of_dequantised_weights(folders):
    on_card, on_host = draw(load(folders["int8_convrot"], device="npu"), 4), draw(load(folders["int8_convrot"]), 4)
    plain = draw(load(TINY), 4)
    # Inputs are rounded to int8, too: about what rounding the weights costs.
    assert (on_card - on_host).norm() < 0.03 * plain.norm()
    assert (on_host - plain).norm() < 0.06 * plain.norm()  # 0.038; the weights are random


def _layer(group: int, dtype: torch.dtype) -> tuple[nn.Linear, QuantizedLinear]:
    torch.manual_seed(0)
    plain = nn.Linear(256, 48)
    plain.weight.data[:, 7] *= 30  # a column of outliers, for which there is rotation
    holder = nn.Sequential(plain).to(dtype)
    plain = holder[0]
    model = nn.Sequential(nn.Linear(256, 48, device="meta")).to(dtype)
    replace_layers(model, {"0": LayerFormat(INT8, group)})
    quantized = model.to_empty(device="cpu")[0]
    quantized.bias.data.copy_(plain.bias.data)
    quantized.quantize_(plain.weight)
    return plain, quantized


@pytest.fixture
def without_rotate_quant(monkeypatch):
    """A release of torch_npu that has no fused rotation."""
    monkeypatch.setattr(linear, "rotate_quant", lambda: None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("group", [0, 4, 64])
def test_a_layer(group, dtype):
    plain, quantized = _layer(group, dtype)
    x = torch.randn(2, 5, 256).to(dtype)
    ours = quantized.to(NPU)(x.to(NPU))
    assert ours.dtype == dtype and ours.shape == (2, 5, 48)
    expected = F.linear(x.float(), plain.weight.float(), plain.bias.float())
    # Without rotation the column of outliers decides the scale of every row.
    assert (ours.float().cpu() - expected).norm() < (0.02 if group else 0.05) * expected.norm()
    assert state.counts.operators[QUANT] + state.counts.operators[ROTATE] == state.counts.operators[MATMUL] == 1


def test_a_release_without_the_fused_rotation(without_rotate_quant):
    _, quantized = _layer(64, torch.bfloat16)
    x = torch.randn(2, 5, 256, dtype=torch.bfloat16).to(NPU)
    apart = quantized.to(NPU)(x).float()
    assert state.counts.operators[QUANT] == 1 and state.counts.operators[ROTATE] == 0
    state.counts.operators.clear()
    linear.rotate_quant = _ROTATE_QUANT
    fused = quantized(x).float()
    assert state.counts.operators[ROTATE] == 1 and state.counts.operators[QUANT] == 0
    assert (apart - fused).norm() < 2**-7 * fused.norm()  # a rounding of the rotated input


def test_a_card_whose_rotation_has_other_formats(monkeypatch):
    monkeypatch.setattr(torch.npu, "get_device_name", lambda *index: "Ascend950PR")
    linear.rotate_quant.cache_clear()
    _, quantized = _layer(64, torch.bfloat16)
    quantized.to(NPU)(torch.randn(3, 256, dtype=torch.bfloat16).to(NPU))
    linear.rotate_quant.cache_clear()
    assert state.counts.operators[QUANT] == 1 and state.counts.operators[ROTATE] == 0


def test_a_captured_step_and_a_second_card(folders):
    pipe = load(folders["int8_convrot"], device="npu")
    plain = draw(pipe, 3)
    pipe.capture_graph = True
    assert torch.equal(draw(pipe, 3), plain)
    pipe.capture_graph = False
    pipe.enable_cfg_parallel("npu:1")
    assert pipe._cfg_transformers and len(quantized_layers(pipe._cfg_transformers[0])) > 0
    assert torch.equal(draw(pipe, 3), plain)


def test_a_lora_on_two_cards_and_captured(folders, tmp_path):
    generator = torch.Generator().manual_seed(0)
    name = "transformer.transformer_blocks.0.attn.to_q"
    weights = {
        f"{name}.lora_A.weight": 0.2 * torch.randn(2, 32, generator=generator),
        f"{name}.lora_B.weight": torch.randn(32, 2, generator=generator),
    }
    save_file(weights, tmp_path / "style.safetensors")
    pipe = load(folders["int8_convrot"], device="npu")
    plain = draw(pipe, 3)
    pipe.capture_graph = True
    pipe.load_lora_weights(tmp_path / "style.safetensors")
    changed = draw(pipe, 3)
    assert (changed - plain).norm() > 0.05 * plain.norm()
    pipe.capture_graph = False
    assert torch.equal(draw(pipe, 3), changed)
    pipe.enable_cfg_parallel("npu:1")
    assert torch.equal(draw(pipe, 3), changed)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, 3), plain)


def test_offload(folders):
    plain = draw(load(folders["int8_convrot"], device="npu"), 3)
    pipe = load(folders["int8_convrot"])
    pipe.enable_model_cpu_offload("npu")
    assert torch.equal(draw(pipe, 3), plain)


@pytest.mark.parametrize("way", ["load", "to", "offload"])
def test_fp8_is_refused_with_the_format_to_take(folders, way):
    with pytest.raises(DeviceError, match=r"no float8\. Take int8_convrot"):
        if way == "load":
            load(folders["fp8"], device="npu")
        elif way == "to":
            load(folders["fp8"]).to("npu")
        else:
            load(folders["fp8"]).enable_model_cpu_offload("npu")


def test_the_golden_images_are_near(folders):
    pipe = DeepGenPipeline.from_pretrained(folders["int8_convrot"], torch_dtype=torch.bfloat16, device="npu")
    for case in ("t2i", "edit"):
        ours, golden = denoised(pipe, case)
        assert (ours.float().cpu() - golden).norm() < 0.05 * golden.norm()
