"""LoRA files for the tiny checkpoint in the styles of several trainers, and the weights that they must give.

Nothing here calls `deepgen_npu.lora`: what is expected is computed in float64 from the definitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


LAYERS = {
    "transformer_blocks.0.attn.to_q": 1,
    "transformer_blocks.0.attn.to_out.0": 4,
    "transformer_blocks.1.attn2.to_k": 2,
    "transformer_blocks.1.ff.net.0.proj": 3,
    "transformer_blocks.2.ff_context.net.2": 4,
    "transformer_blocks.3.norm1_context.linear": 2,
    "transformer_blocks.3.attn.add_v_proj": 5,
    "norm_out.linear": 2,
    "proj_out": 8,
    "pos_embed.proj": 3,
    "context_embedder": 6,
    "time_text_embed.timestep_embedder.linear_1": 2,
}
"""Ranks of a LoRA that changes layers of all sorts."""


def _dots(prefix: str, down: str, up: str) -> tuple[str, str, bool]:
    return f"{prefix}{{}}.{down}", f"{prefix}{{}}.{up}", False


STYLES = {
    "diffusers": _dots("transformer.", "lora_A.weight", "lora_B.weight"),
    "diffusers, lora.down": _dots("transformer.", "lora.down.weight", "lora.up.weight"),
    "diffusers, old": _dots("", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "PEFT": _dots("base_model.model.", "lora_A.weight", "lora_B.weight"),
    "PEFT, with the adapter's name": _dots("transformer.", "lora_A.default.weight", "lora_B.default.weight"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", True),
    "bare": _dots("", "lora_A.weight", "lora_B.weight"),
    "ComfyUI": _dots("diffusion_model.", "lora_down.weight", "lora_up.weight"),
    "LyCORIS": ("lycoris_{}.lora_down.weight", "lycoris_{}.lora_up.weight", True),
    "OneTrainer": ("lora_transformer_{}.lora_down.weight", "lora_transformer_{}.lora_up.weight", True),
}
"""Keys of the two factors, and whether names have underscores for dots."""


@dataclass
class Example:
    """A plain LoRA: factors up [n, r] (or [n, r, 1, 1]) and down [r, m, ...], and an alpha for each layer."""

    factors: dict[str, tuple[Tensor, Tensor, float]]

    @classmethod
    def of(cls, transformer: Any, seed: int = 0, layers: dict[str, int] | None = None) -> Example:
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name, rank in (layers or LAYERS).items():
            shape = transformer.get_submodule(name).weight.shape
            up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator) * 0.1
            down = torch.randn(rank, *shape[1:], generator=generator) * 0.2
            factors[name] = (up, down, 0.5 + len(factors) % 3)
        return cls(factors)

    def tensors(self, style: str = "diffusers", alpha: bool = True) -> dict[str, Tensor]:
        """What a trainer would save; without alphas they are folded into the factors."""
        down_key, up_key, joined = STYLES[style]
        found: dict[str, Tensor] = {}
        for name, (up, down, value) in self.factors.items():
            name = name.replace(".", "_") if joined else name
            found[up_key.format(name)] = up if alpha else up * (value / len(down))
            found[down_key.format(name)] = down
            if alpha:
                found[f"{down_key.format(name).split('.lora')[0]}.alpha"] = torch.tensor(value)
        return found

    def save(self, path: Path, style: str = "diffusers", alpha: bool = True, **metadata: str) -> Path:
        return save(path, self.tensors(style, alpha), **metadata)

    def deltas(self) -> dict[str, Tensor]:
        """What is added to each weight, in float64."""
        found = {}
        for name, (up, down, alpha) in self.factors.items():
            flat = up.double().flatten(1) @ down.double().flatten(1) * (alpha / len(down))
            found[f"{name}.weight"] = flat.reshape(up.shape[0], *down.shape[1:])
        return found


def save(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata or None)
    return path


def state(transformer: Any) -> dict[str, Tensor]:
    """A copy of all tensors, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in transformer.state_dict().items()}


def merged(before: dict[str, Tensor], *deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with what is added to them, computed in float64."""
    found = dict(before)
    for one in deltas:
        for name, delta in one.items():
            found[name] = found[name].double() + delta
    return {name: tensor.to(before[name].dtype) for name, tensor in found.items()}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """To the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def latents(pipe: Any) -> Tensor:
    """Final latents of a short run. They are up to 7, and small steps with little guidance keep rounding small."""
    call = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 2.0, "seed": 3}
    return pipe("a red circle", **call, output_type="latent").images.float().cpu()
