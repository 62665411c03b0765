"""Variants of the tiny checkpoint's DiT, and LoRAs for it in the forms that trainers write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from golden import TINY
from safetensors.torch import save_file
from tensors import load_file
from torch import Tensor

from deepgen_npu.model.positions import STAYS_ON_HOST


FILE = "transformer/diffusion_pytorch_model.safetensors"
RANK = 2
LORA_LAYERS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.0.attn2.to_v",
    "transformer_blocks.2.ff.net.0.proj",
    "transformer_blocks.1.norm1.linear",
    "context_embedder",
    "time_text_embed.timestep_embedder.linear_1",
    "proj_out",
)
"""One of each kind: whatever is computed ahead of the steps, or by an operator of its own, must take a LoRA, too."""

Tensors = dict[str, Tensor]


def _weights() -> Tensors:
    """Of the tiny checkpoint, in float32: what is added to them would be lost in the bfloat16 of its file."""
    return {key: tensor.float() for key, tensor in sorted(load_file(TINY / FILE).items())}


def write_variant(models: Path, name: str, change: Callable[[Tensors], object]) -> None:
    """``models/deepgen/NAME``: the tiny checkpoint, whose DiT the function has changed in place."""
    folder = Path(shutil.copytree(TINY, models / "deepgen" / name))
    tensors = _weights()
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(folder / FILE))


def skip_block(tensors: Tensors, block: int) -> None:
    """A block whose gates are shut adds nothing."""
    for norm in ("norm1", "norm1_context"):
        for kind in ("weight", "bias"):
            tensors[f"transformer_blocks.{block}.{norm}.linear.{kind}"].zero_()


def other_weights() -> Tensors:
    """Of a second model; the table of positions is the same in all."""
    generator = torch.Generator().manual_seed(8)
    return {
        key: tensor + 0.3 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        for key, tensor in _weights().items()
        if key != STAYS_ON_HOST
    }


def become_the_other(tensors: Tensors) -> None:
    tensors.update(other_weights())


def become_a_mixture(tensors: Tensors) -> None:
    """A quarter of the weights that were there."""
    for key, other in other_weights().items():
        tensors[key] = 0.25 * tensors[key] + 0.75 * other


def lora_factors() -> dict[str, tuple[Tensor, Tensor]]:
    """Of each layer down [rank, in] and up [out, rank]: their product is added to the weight."""
    generator = torch.Generator().manual_seed(9)
    weights = _weights()
    found = {}
    for layer in LORA_LAYERS:
        rows, columns = weights[f"{layer}.weight"].shape
        size = weights[f"{layer}.weight"].std() / columns**0.5
        down, up = (torch.randn(shape, generator=generator) for shape in ((RANK, columns), (rows, RANK)))
        found[layer] = (down, up * size)
    return found


def merge_lora(tensors: Tensors) -> None:
    for layer, (down, up) in lora_factors().items():
        tensors[f"{layer}.weight"] += up @ down


def _peft(prefix: str, adapter: str = "") -> Tensors:
    return {
        f"{prefix}{layer}.lora_{letter}.{adapter}weight": factor
        for layer, factors in lora_factors().items()
        for letter, factor in zip("AB", factors, strict=True)
    }


def _kohya(prefix: str) -> Tensors:
    """With an alpha of half the rank, by which its factors are scaled when it is applied."""
    found = {}
    for layer, (down, up) in lora_factors().items():
        name = prefix + layer.replace(".", "_")
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": 2 * up}
        found[f"{name}.alpha"] = torch.tensor(RANK / 2)
    return found


LORA_FORMS: dict[str, Callable[[], Tensors]] = {
    "bare": lambda: _peft(""),
    "diffusers": lambda: _peft("transformer."),
    "diffusers_named": lambda: _peft("transformer.", "default."),
    "peft": lambda: _peft("base_model.model."),
    "comfyui": lambda: _peft("diffusion_model."),
    "kohya": lambda: _kohya("lora_unet_"),
    "lycoris": lambda: _kohya("lycoris_"),
}


def write_loras(models: Path) -> None:
    (models / "loras").mkdir(exist_ok=True)
    for form, tensors in LORA_FORMS.items():
        contiguous = {key: tensor.clone().contiguous() for key, tensor in tensors().items()}
        save_file(contiguous, str(models / "loras" / f"{form}.safetensors"))
