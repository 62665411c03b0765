"""On a card: quantised weights and its own int8 kernels, against the same weights dequantised on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from quantized_folders import write_quantized

from deepgen_npu import DeepGenPipeline
from deepgen_npu.checkpoint.folder import PARTS
from deepgen_npu.errors import DeviceError
from deepgen_npu.quantization.formats import FORMATS
from deepgen_npu.tools.bench import as_markdown, measure
from deepgen_npu.tools.random_model import RandomModel
from deepgen_npu.tools.runs import RunSettings


SIZE = os.environ.get("DEEPGEN_HARDWARE_SIZE", "published")
# Relative. Weights and inputs are rounded to int8, in bfloat16: 0.03 with reference kernels. Of float8, weights alone.
LIMITS = {"int8_convrot": 0.06, "int8": 0.06, "fp8": 0.06}


def draw(pipe: DeepGenPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 96, "num_inference_steps": 6, "seed": 3, "output_type": "latent"}
    return pipe("a red circle on a white background", **options).images.float().cpu()


@pytest.mark.parametrize("title", FORMATS)
def test_the_card_computes_what_the_weights_say(device, tmp_path, title, hardware_table):
    folder = write_quantized(tmp_path / title, title)
    if title == "fp8" and device.type == "npu":
        with pytest.raises(DeviceError, match="int8_convrot"):
            DeepGenPipeline.from_pretrained(folder, device=device)
        return
    expected = draw(DeepGenPipeline.from_pretrained(folder, torch_dtype=torch.float32))
    pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, device=device)
    found = draw(pipe)
    apart = ((found - expected).norm() / expected.norm()).item()
    hardware_table.append((f"{title}: latents against dequantised weights", f"{apart:.3f} apart"))
    assert apart < LIMITS[title]
    assert torch.equal(draw(pipe), found)
    pipe.capture_graph = True
    assert torch.equal(draw(pipe), found)


def test_memory_and_time(device, hardware_table):
    """Reported; `test_measurements` has the numbers of plain weights."""
    model = RandomModel.of_size(SIZE, title="int8_convrot")
    pipe = model.load(torch.bfloat16, dict.fromkeys(PARTS, device))
    pipe.set_progress_bar_config(disable=True)
    side = 64 if SIZE == "tiny" else 512
    run = RunSettings("a photo of a blue pizza", side, side, 42, 50 if SIZE == "published" else 4, 4.0, 0)
    result = measure(pipe, device, run, count=1)
    hardware_table.append((f"{SIZE} in int8_convrot", as_markdown(result).replace("\n", "; ")))
    weights = sum(part.nbytes for part in result.parts.values())
    on_host = pipe.transformer.pos_embed.pos_embed.nbytes
    # What no file has, rotary frequencies, takes a few KiB.
    assert weights + on_host == pytest.approx(model.nbytes(torch.bfloat16), abs=2**16)
