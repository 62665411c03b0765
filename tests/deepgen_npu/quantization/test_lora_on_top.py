"""A LoRA on quantised weights: near to what it gives on plain ones, and gone to the bit afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quantized_folders import write_quantized
from safetensors.torch import save_file

from deepgen_npu import DeepGenPipeline


LAYERS = "transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2", "transformer_blocks.0.norm1.linear"
"""Two that are quantised, and one that is not."""


@pytest.fixture(scope="module")
def lora(tmp_path_factory, pipe) -> Path:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name in LAYERS:
        rows, columns = pipe.transformer.get_submodule(name).weight.shape
        weights[f"transformer.{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * columns**-0.5
        weights[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.3
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(weights, path)
    return path


def draw(pipe: DeepGenPipeline) -> torch.Tensor:
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "seed": 1, "output_type": "latent"}
    return pipe("a red circle", **options).images


@pytest.mark.parametrize("title", ["int8_convrot", "int8", "fp8"])
def test_a_lora_on_quantised_weights(tmp_path, pipe, lora, title):
    small = DeepGenPipeline.from_pretrained(write_quantized(tmp_path / "tiny", title), torch_dtype="float32")
    small.set_progress_bar_config(disable=True)
    before = {name: tensor.clone() for name, tensor in small.transformer.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in small.transformer.state_dict().items()}
    plain, quantized = draw(pipe), draw(small)
    limit = 0.12 if title == "fp8" else 0.04
    pipe.load_lora_weights(lora, weight=0.8)
    try:
        expected = draw(pipe)
    finally:
        pipe.unload_lora_weights()
    small.load_lora_weights(lora, weight=0.8)
    found = draw(small)
    assert (expected - plain).norm() > 0.2 * plain.norm()
    assert (found - expected).norm() < limit * expected.norm()
    after = small.transformer.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == places  # captured graphs read there
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: one.dtype for name, one in before.items()}

    small.set_adapters("style", 0.0)
    assert torch.equal(draw(small), quantized)
    small.set_adapters("style", 0.8)
    assert torch.equal(draw(small), found)
    small.unload_lora_weights()
    after = small.transformer.state_dict()
    assert all(torch.equal(after[name].float(), tensor.float()) for name, tensor in before.items())
    assert torch.equal(draw(small), quantized)
