"""The names that LoRA files have for the layers of the DiT.

Every trainer has a style of its own, of one of two kinds:

* diffusers' names of SD3's modules, with or without a prefix, with dots (``transformer_blocks.0.attn.to_q``) or with
  underscores (``lycoris_transformer_blocks_0_attn_to_q``);
* the names of the reference implementation of SD3 (``joint_blocks.0.x_block.attn.qkv``), in which queries, keys and
  values are one layer, and the last modulation has its halves the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
"""Before names with dots: PEFT, ComfyUI and the reference implementation, diffusers. Some files have two of them."""

JOINED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_transformer_", "lycoris_")
"""Before names with underscores: kohya, OneTrainer, LyCORIS and SimpleTuner."""

EXAMPLES = ("transformer.transformer_blocks.0.attn.to_q", "lora_unet_transformer_blocks_0_attn_to_q")

_OF_ATTENTION = {"proj": "to_out.0", "ln_q": "norm_q", "ln_k": "norm_k"}
_BLOCK = {
    **{f"x_block.attn.{reference}": f"attn.{name}" for reference, name in _OF_ATTENTION.items()},
    **{f"x_block.attn2.{reference}": f"attn2.{name}" for reference, name in _OF_ATTENTION.items()},
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
"""Names in a block of the reference implementation (Stability-AI/sd3.5, mmditx.py), and in diffusers
(scripts/convert_sd3_to_diffusers.py)."""

_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_AROUND = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


@dataclass(frozen=True)
class Layer:
    """A layer as a file has it.

    Attributes:
        modules: The modules of the DiT whose rows it consists of, one after the other.
        swapped: The file has shift and scale, the halves of the rows, the other way round.
    """

    modules: tuple[str, ...]
    swapped: bool = False


class LayerNames:
    """Finds the layers that names in files mean.

    Args:
        tensors: Names of the tensors of the DiT, as diffusers has them; those of weights count.
    """

    def __init__(self, tensors: Iterable[str]):
        names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
        self._layers = {name: Layer((name,)) for name in names} | dict(by_reference_names(names))
        self._joined = {name.replace(".", "_"): layer for name, layer in self._layers.items()}

    def find(self, name: str) -> Layer | None:
        """The layer of a name without what follows it (``.lora_A.weight``); None if the DiT has none of that name."""
        while (shorter := _without_prefix(name, PREFIXES)) is not None:
            name = shorter
        for one in _spellings(name):
            if one in self._layers:
                return self._layers[one]
        for prefix in JOINED_PREFIXES:
            if name.startswith(prefix) and name[len(prefix) :] in self._joined:
                return self._joined[name[len(prefix) :]]
        return None


def _without_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    return next((name[len(prefix) :] for prefix in prefixes if name.startswith(prefix)), None)


def _spellings(name: str) -> Iterator[str]:
    """A name with dots, and as the attention processors of older releases of diffusers had it."""
    yield name
    name = name.replace(".processor.", ".")
    yield name
    if name.endswith(".to_out"):
        yield f"{name}.0"


def by_reference_names(modules: Iterable[str]) -> Iterator[tuple[str, Layer]]:
    """The layers of the DiT by their names in the reference implementation; `modules` as for `LayerNames`."""
    known = set(modules)
    blocks = {int(match[1]) for match in map(re.compile(r"transformer_blocks\.(\d+)\.").match, known) if match}
    last = max(blocks, default=0)
    for index in blocks:
        block, reference = f"transformer_blocks.{index}.", f"joint_blocks.{index}."
        for name, module in _BLOCK.items():
            # Of the last block's context only scale and shift are left: diffusers' AdaLayerNormContinuous.
            swapped = index == last and name == "context_block.adaLN_modulation.1"
            if block + module in known:
                yield reference + name, Layer((block + module,), swapped)
        for name, fused in _FUSED.items():
            if known.issuperset(block + module for module in fused):
                yield reference + name, Layer(tuple(block + module for module in fused))
    for name, module in _AROUND.items():
        if module in known:
            yield name, Layer((module,))
    if "norm_out.linear" in known:
        yield "final_layer.adaLN_modulation.1", Layer(("norm_out.linear",), swapped=True)
