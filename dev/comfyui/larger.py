"""Random checkpoints for real ComfyUIs: large enough to be measured, and deep as DeepGen 1.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepgen_npu.tools.model_sizes import SIZES, make_size


TINY_CONFIGS = SIZES["tiny"].configs
NAME = "larger"

_TEXT = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_VISION = ("depth", "fullatt_block_indexes", "hidden_size", "intermediate_size", "num_heads")
_TRANSFORMER = ("attention_head_dim", "dual_attention_layers", "joint_attention_dim", "num_attention_heads")
_TRANSFORMER += ("num_layers", "pooled_projection_dim", "pos_embed_max_size", "sample_size")


def _tiny(keys: Sequence[str], config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """These settings of ``tiny``, but for the changes."""
    return {key: config[key] for key in keys} | changes


_VLM, _CONNECTOR = TINY_CONFIGS["vlm"], TINY_CONFIGS["connector"]
_TINY_VISION = _tiny(_VISION, _VLM["vision_config"])
_OF_ALL = {
    "connector": _CONNECTOR["connector"],
    "num_queries": _CONNECTOR["num_queries"],
    "shard_bytes": 150_000_000,
}


def _text(**changes: Any) -> dict[str, Any]:
    return _tiny(_TEXT, _VLM["text_config"], vocab_size=288, **changes)


def _transformer(**changes: Any) -> dict[str, Any]:
    return _tiny(_TRANSFORMER, TINY_CONFIGS["transformer"], **changes)


def _vae(*channels: int) -> dict[str, Any]:
    return {"block_out_channels": [*channels], "norm_num_groups": 4, "sample_size": 64}


LARGER = make_size(
    text=_text(hidden_size=512, intermediate_size=2048, num_attention_heads=8),
    vision=_TINY_VISION | {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4},
    transformer=_transformer(),
    vae=_vae(32, 64, 128, 128),
    **_OF_ALL,
)
"""137 million parameters in the VLM; DiT and connector are those of ``tiny``, the VAE has a quarter of the width."""

DEEP = make_size(
    text=_text(),
    vision=_TINY_VISION,
    transformer=_transformer(num_layers=24, dual_attention_layers=list(range(13))),
    vae=_vae(32, 64, 64, 64),
    **_OF_ALL,
)
"""A DiT of the published depth, 32 wide: what a step costs the host."""

STREAMED = make_size(
    text=_text(hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_hidden_layers=24),
    vision=_TINY_VISION,
    transformer=_transformer(attention_head_dim=32, num_attention_heads=20, num_layers=6),
    vae=_vae(32, 64, 64, 64),
    **_OF_ALL,
)
"""VLM and DiT of about 340 MiB in float32 each: ComfyUI 0.3.64 gives every model at least 128 MiB."""

SD3 = make_size(
    text=_text(),
    vision=_TINY_VISION,
    transformer=_transformer(attention_head_dim=64, num_attention_heads=3, num_layers=3, dual_attention_layers=[0, 1]),
    vae=_vae(32, 64, 64, 64),
    **_OF_ALL,
)
"""A DiT that ComfyUI's own SD3 can be: heads of 64, and as many of them as blocks."""
