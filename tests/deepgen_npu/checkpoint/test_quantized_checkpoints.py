"""Folders with quantised layers: what is read of them, and what is refused before anything slow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import TINY
from quantized_folders import write_quantized
from safetensors import safe_open
from safetensors.torch import save_file

from deepgen_npu import Checkpoint, CheckpointError, DeepGenPipeline
from deepgen_npu.checkpoint.weights import load_part
from deepgen_npu.quantization.formats import INT8, LayerFormat
from deepgen_npu.quantization.linear import quantized_layers


FILE = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    return write_quantized(tmp_path_factory.mktemp("quantized") / "tiny", "int8_convrot")


@pytest.fixture
def changed(quantized, tmp_path):
    """The folder with a change of the DiT's tensors or of the header's metadata."""

    def change(function: Callable[[Tensors, dict[str, str]], Any]) -> Path:
        folder = Path(shutil.copytree(quantized, tmp_path / "changed"))
        with safe_open(folder / FILE, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata())
        function(tensors, metadata)
        save_file(tensors, folder / FILE, metadata)
        return folder

    return change


def mark(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def test_the_layers_are_known_without_reading_weights(quantized):
    found = Checkpoint.open(quantized)
    assert found.quantized["transformer"][LAYER] == LayerFormat(INT8, 16)
    assert "model.language_model.layers.0.mlp.up_proj" in found.quantized["vlm"]  # by the name that the model has
    assert found.quantized["vae"] == {}
    assert not any(Checkpoint.open(TINY).quantized.values())


def test_marks_may_be_in_the_header(quantized, changed):
    def move(tensors: Tensors, metadata: dict[str, str]) -> None:
        layers = {}
        for name in [name for name in tensors if name.endswith(".comfy_quant")]:
            layers[name.removesuffix(".comfy_quant")] = json.loads(bytes(tensors.pop(name).tolist()))
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})

    expected, found = Checkpoint.open(quantized), Checkpoint.open(changed(move))
    assert found.quantized == expected.quantized
    ours, theirs = (load_part(one, "transformer", torch.float32).state_dict() for one in (found, expected))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_one_scale_for_all_rows_and_a_scale_of_inputs(changed):
    def change(tensors: Tensors, metadata: dict[str, str]) -> None:
        tensors[f"{LAYER}.weight_scale"] = torch.tensor(0.5)
        tensors[f"{LAYER}.input_scale"] = torch.tensor(0.1)  # inputs stay as they are

    transformer = load_part(Checkpoint.open(changed(change)), "transformer", torch.float32)
    scales = transformer.get_submodule(LAYER).weight_scale
    assert scales.shape == (32, 1) and (scales == 0.5).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update({f"{LAYER}.comfy_quant": mark("{")}), "comfy_quant of"),
        (lambda tensors: tensors.update({f"{LAYER}.comfy_quant": mark('{"format": "nvfp4"}')}), "got 'nvfp4'"),
        (lambda tensors: tensors.update({f"{LAYER}.comfy_quant": mark(" " * 2000)}), "at most 1024 bytes"),
        (lambda tensors: tensors.update({f"{LAYER}.comfy_quant": torch.zeros(4)}), "got F32 [4]"),
        (
            lambda tensors: tensors.update(
                {f"{LAYER}.comfy_quant": mark('{"format": "int8_tensorwise", "convrot": true}')}
            ),
            "its columns must be a multiple of 256, its convrot_groupsize, got 32",
        ),
        (lambda tensors: tensors.pop(f"{LAYER}.comfy_quant"), "must have one of the dtypes F64, F32, F16, BF16, or"),
        (lambda tensors: tensors.pop(f"{LAYER}.weight_scale"), "to_q has no weight_scale beside it"),
        (
            lambda tensors: tensors.pop(f"{LAYER}.weight"),
            "lacks transformer_blocks.0.attn.to_q.weight, of which comfy_quant says",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.weight_scale": torch.ones(3)}),
            "weight_scale must be F32 [32, 1] or [32] or [] or [1], got F32 [3]",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(32, 32)}),
            "to_q.weight must be a matrix of I8, given comfy_quant beside it, got F32 [32, 32]",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(32, 16, dtype=torch.int8)}),
            "to_q.weight must have the shape [32, 32]",
        ),
        (
            lambda tensors: tensors.update({"proj_out.weight": torch.ones(64, 32, dtype=torch.uint8)}),
            "proj_out.weight must have one of the dtypes",
        ),
    ],
)
def test_what_does_not_fit_is_named(changed, change, words):
    folder = changed(lambda tensors, metadata: change(tensors))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert words in str(caught.value) and FILE in str(caught.value)


@pytest.mark.parametrize("text", ["[]", '{"layers": []}', "nothing"])
def test_metadata_that_cannot_be_read(changed, text):
    folder = changed(lambda tensors, metadata: metadata.update({"_quantization_metadata": text}))
    with pytest.raises(CheckpointError, match="_quantization_metadata"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("title", ["int8_convrot", "int8", "fp8"])
def test_a_run(tmp_path, pipe, title):
    """Weights stay quantised; the image is near."""
    folder = write_quantized(tmp_path / "tiny", title)
    small = DeepGenPipeline.from_pretrained(folder, torch_dtype="float32", device="cpu")
    small.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "seed": 1, "output_type": "latent"}
    ours, plain = (one("a red circle", **options).images for one in (small, pipe))
    assert (ours - plain).norm() < (0.12 if title == "fp8" else 0.04) * plain.norm()  # 0.062, 0.017, 0.016
    for part, layers in Checkpoint.open(folder).quantized.items():
        assert quantized_layers(small.components[part]) == layers
    # A quarter of float32, and four bytes for the scale of each row.
    weight = small.transformer.get_submodule(LAYER).weight
    assert weight.nbytes == 32 * 32 and small.transformer.dtype == small.vlm.dtype == torch.float32
    assert small.memory()["vlm"].nbytes < 0.6 * pipe.memory()["vlm"].nbytes
