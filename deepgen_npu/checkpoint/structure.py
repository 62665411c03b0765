"""The settings of each part compared with the names and shapes of its stored tensors, which decide.

First single numbers, so that an error names the key that is wrong; then all names and shapes. Counts come first, so
that no list is longer than what is stored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checks import must
from ..errors import CheckpointError
from .files import damaged, download_again, printable, wrong
from .safetensors_header import StoredTensor
from .schema import relations
from .tensor_shapes import SHAPES


Tensors = Mapping[str, StoredTensor]


def check_structure(part: str, folder: Path, config_file: Path, settings: Mapping[str, Any], tensors: Tensors) -> None:
    """Compare the settings of a part with its stored tensors.

    Args:
        part: ``vlm``, ``connector``, ``transformer`` or ``vae``.
        folder: Of the part, for messages.
        config_file: Its config, for messages.
        settings: As `schema.settings` returns them.
        tensors: By the names that the model has, so for the VLM by those of current transformers.

    Raises:
        CheckpointError: Naming the key or the tensor, what is stored and what the config has.
    """
    stored = _Stored(folder, tensors)
    for path, expected, source in _PINS[part](stored, settings):
        found: Any = settings
        for key in path.split("."):
            found = found[key]
        if found != expected:
            raise wrong(config_file, path, found, f"{expected}, given {source} in {stored.where}")
    relations(part, config_file, settings)
    shapes = SHAPES[part](settings)
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise damaged(f"{stored.where} lacks {_few(missing)}, which {config_file} requires.")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise CheckpointError(f"{stored.where} has {_few(unknown)}, which {config_file} does not describe.")
    for name, shape in shapes.items():
        if (found := tensors[name].shape) != shape:
            requirement = f"have the shape {list(shape)}, given {config_file}"
            raise CheckpointError(
                f"{tensors[name].file}: {must(name, requirement, list(found), (), download_again())}"
            )


class _Stored:
    """Numbers from the names and shapes of stored tensors.

    Attributes:
        where: The file that contains all tensors, or the folder of several; for messages.
        tensors: By name.
    """

    def __init__(self, folder: Path, tensors: Tensors):
        files = {tensor.file for tensor in tensors.values()}
        self.where = files.pop() if len(files) == 1 else folder
        self.tensors = tensors

    def shape(self, name: str, sides: int) -> tuple[int, ...]:
        """The shape of a tensor, which must have that number of dimensions."""
        if name not in self.tensors:
            raise damaged(f"{self.where} lacks {name}.")
        tensor = self.tensors[name]
        if len(tensor.shape) != sides:
            message = must(name, f"have {sides} dimensions", list(tensor.shape), (), download_again())
            raise CheckpointError(f"{tensor.file}: {message}")
        return tensor.shape

    def count(self, prefix: str) -> int:
        """How many numbers follow ``prefix`` in names: of blocks, layers and the like.

        Raises:
            CheckpointError: When they do not count up from 0.
        """
        pattern = re.compile(re.escape(prefix) + r"\.([0-9]{1,7})\.")
        found = {int(match[1]) for match in map(pattern.match, self.tensors) if match}
        if found != set(range(len(found))):
            absent = next(index for index in range(len(found)) if index not in found)
            raise damaged(f"{self.where} lacks {prefix}.{absent}.")
        return len(found)


Pins = Iterator[tuple[str, Any, str]]
"""Keys in a config, the value that the tensors require, and the tensor that requires it."""


def _connector(stored: _Stored, settings: Mapping[str, Any]) -> Pins:
    queries = stored.shape("meta_queries", 2)
    yield "num_queries", queries[0], "meta_queries"
    yield "llm_hidden_size", queries[1], "meta_queries"
    for index in (1, 2, 3):
        name = f"projector_{index}.weight"
        outs, ins = stored.shape(name, 2)
        yield f"projector_{index}_in", ins, name
        yield f"projector_{index}_out", outs, name
    yield "connector.num_hidden_layers", stored.count("connector.layers"), "layers"
    name = "connector.layers.0.mlp.fc1.weight"
    inner, width = stored.shape(name, 2)
    yield "connector.hidden_size", width, name
    yield "connector.intermediate_size", inner, name


def _transformer(stored: _Stored, settings: Mapping[str, Any]) -> Pins:
    yield "num_layers", (layers := stored.count("transformer_blocks")), "transformer_blocks"
    name = "pos_embed.proj.weight"
    width, channels, patch, _ = stored.shape(name, 4)
    yield "patch_size", patch, name
    yield "in_channels", channels, name
    norm = "transformer_blocks.0.attn.norm_q.weight"
    yield "qk_norm", "rms_norm" if norm in stored.tensors else None, "transformer_blocks.0.attn"
    if norm in stored.tensors:
        (head,) = stored.shape(norm, 1)
        yield "attention_head_dim", head, norm
        yield "num_attention_heads", width // max(1, head), f"{norm} and {name}"
    else:
        yield "num_attention_heads", width // settings["attention_head_dim"], name
    yield "caption_projection_dim", width, name
    name = "context_embedder.weight"
    yield "joint_attention_dim", stored.shape(name, 2)[1], name
    name = "time_text_embed.text_embedder.linear_1.weight"
    yield "pooled_projection_dim", stored.shape(name, 2)[1], name
    name = "proj_out.weight"
    yield "out_channels", stored.shape(name, 2)[0] // max(1, patch) ** 2, name
    name = "pos_embed.pos_embed"
    yield "pos_embed_max_size", round(stored.shape(name, 3)[1] ** 0.5), name
    dual = [index for index in range(layers) if f"transformer_blocks.{index}.attn2.to_q.weight" in stored.tensors]
    if sorted(settings["dual_attention_layers"]) != dual:
        yield "dual_attention_layers", dual, "attn2 of transformer_blocks"


def _vae(stored: _Stored, settings: Mapping[str, Any]) -> Pins:
    blocks = stored.count("encoder.down_blocks")
    names = [f"encoder.down_blocks.{index}.resnets.0.conv1.weight" for index in range(blocks)]
    yield "block_out_channels", [stored.shape(name, 4)[0] for name in names], "encoder.down_blocks"
    yield "layers_per_block", stored.count("encoder.down_blocks.0.resnets"), "encoder.down_blocks.0.resnets"
    yield "in_channels", stored.shape("encoder.conv_in.weight", 4)[1], "encoder.conv_in.weight"
    yield "latent_channels", stored.shape("decoder.conv_in.weight", 4)[1], "decoder.conv_in.weight"
    yield "out_channels", stored.shape("decoder.conv_out.weight", 4)[0], "decoder.conv_out.weight"
    for key, name in (
        ("mid_block_add_attention", "encoder.mid_block.attentions.0.to_q.weight"),
        ("use_quant_conv", "quant_conv.weight"),
        ("use_post_quant_conv", "post_quant_conv.weight"),
    ):
        there = name in stored.tensors
        yield key, there, name if there else f"no {name}"


def _vlm(stored: _Stored, settings: Mapping[str, Any]) -> Pins:
    name = "model.language_model.embed_tokens.weight"
    rows, width = stored.shape(name, 2)
    yield "text_config.vocab_size", rows, name
    yield "text_config.hidden_size", width, name
    prefix = "model.language_model.layers"
    yield "text_config.num_hidden_layers", stored.count(prefix), "layers"
    name = f"{prefix}.0.mlp.gate_proj.weight"
    yield "text_config.intermediate_size", stored.shape(name, 2)[0], name
    yield from _heads(width, stored.shape(f"{prefix}.0.self_attn.k_proj.weight", 2)[0], settings["text_config"])
    prefix = "model.visual.blocks"
    yield "vision_config.depth", stored.count(prefix), "visual.blocks"
    name = "model.visual.patch_embed.proj.weight"
    width, channels, temporal, patch, _ = stored.shape(name, 5)
    yield "vision_config.hidden_size", width, name
    yield "vision_config.in_channels", channels, name
    yield "vision_config.temporal_patch_size", temporal, name
    yield "vision_config.patch_size", patch, name
    name = f"{prefix}.0.mlp.gate_proj.weight"
    yield "vision_config.intermediate_size", stored.shape(name, 2)[0], name
    name = "model.visual.merger.mlp.2.weight"
    out, cell = stored.shape(name, 2)
    yield "vision_config.out_hidden_size", out, name
    yield "vision_config.spatial_merge_size", round((cell / max(1, width)) ** 0.5), name


def _heads(width: int, of_keys: int, text: Mapping[str, Any]) -> Pins:
    """Three keys determine the width of a head; where one disagrees with two, it is the wrong one."""
    source = "self_attn.k_proj, and the other keys about heads,"
    heads, key_heads = text["num_attention_heads"], text["num_key_value_heads"]
    sections = text["rope_scaling"]["mrope_section"]
    widths = {"heads": width / heads, "keys": of_keys / key_heads, "rope": 2.0 * sum(sections)}
    head = Counter(widths.values()).most_common(1)[0][0]
    yield "text_config.num_attention_heads", _integer(width / head), source
    yield "text_config.num_key_value_heads", _integer(of_keys / head), source
    if widths["rope"] != head:
        yield "text_config.rope_scaling.mrope_section", f"three numbers whose sum is {head / 2:g}", source


def _integer(value: float) -> float:
    return int(value) if value == int(value) else value


_PINS: dict[str, Callable[[_Stored, Mapping[str, Any]], Pins]] = {
    "vlm": _vlm,
    "connector": _connector,
    "transformer": _transformer,
    "vae": _vae,
}


def vlm_name(name: str) -> str:
    """The name in current transformers of a tensor saved by 4.5x (``visual.*``, ``model.*``) or later."""
    if name.startswith(("model.visual.", "model.language_model.")):
        return name
    if name.startswith("visual."):
        return f"model.{name}"
    return f"model.language_model.{name.removeprefix('model.')}"


def model_name(part: str, name: str) -> str:
    """The name that a part's model has for a stored tensor or a module."""
    return vlm_name(name) if part == "vlm" else name


def by_model_names(part: str, folder: Path, tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors of a part by the names that the model has; without the VLM's head, which is never used.

    Raises:
        CheckpointError: When two stored names mean the same tensor.
    """
    if part != "vlm":
        return dict(tensors)
    named: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("lm_head."):
            continue
        if (new := vlm_name(name)) in named:
            raise damaged(f"{folder} has {new} twice, once under its old name.")
        named[new] = tensor
    return named


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(map(printable, names[:3])) + more
