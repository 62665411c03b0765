"""Random checkpoints for real ComfyUIs: large enough to be measured, and deep as DeepGen 1.0."""

from __future__ import annotations

from deepgen_npu.tools.model_sizes import SIZES, make_size


TINY_CONFIGS = SIZES["tiny"].configs
NAME = "larger"

_CONNECTOR = TINY_CONFIGS["connector"]
LARGER = make_size(
    text={
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "vocab_size": 288,
    },
    vision={
        "depth": 4,
        "fullatt_block_indexes": [1, 3],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_heads": 4,
    },
    connector=_CONNECTOR["connector"],
    num_queries=_CONNECTOR["num_queries"],
    transformer={
        "attention_head_dim": 16,
        "dual_attention_layers": [0, 1],
        "joint_attention_dim": 64,
        "num_attention_heads": 2,
        "num_layers": 4,
        "pooled_projection_dim": 40,
        "pos_embed_max_size": 64,
        "sample_size": 16,
    },
    vae={"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 4, "sample_size": 64},
    shard_bytes=150_000_000,
)
"""137 million parameters in the VLM; DiT and connector are those of ``tiny``, the VAE has a quarter of the width."""

_TEXT = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_VISION = ("depth", "fullatt_block_indexes", "hidden_size", "intermediate_size", "num_heads")
_TINY_TEXT = {key: TINY_CONFIGS["vlm"]["text_config"][key] for key in _TEXT}
_TINY_VISION = {key: TINY_CONFIGS["vlm"]["vision_config"][key] for key in _VISION}
_TINY_VAE = {"block_out_channels": [32, 64, 64, 64], "norm_num_groups": 4, "sample_size": 64}

DEEP = make_size(
    text={**_TINY_TEXT, "vocab_size": 288},
    vision=_TINY_VISION,
    connector=_CONNECTOR["connector"],
    num_queries=_CONNECTOR["num_queries"],
    transformer={
        "attention_head_dim": 16,
        "dual_attention_layers": list(range(13)),
        "joint_attention_dim": 64,
        "num_attention_heads": 2,
        "num_layers": 24,
        "pooled_projection_dim": 40,
        "pos_embed_max_size": 64,
        "sample_size": 16,
    },
    vae=_TINY_VAE,
    shard_bytes=150_000_000,
)
"""A DiT of the published depth, 32 wide: what a step costs the host."""

STREAMED = make_size(
    text={
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "vocab_size": 288,
    },
    vision=_TINY_VISION,
    connector=_CONNECTOR["connector"],
    num_queries=_CONNECTOR["num_queries"],
    transformer={
        "attention_head_dim": 32,
        "dual_attention_layers": [0, 1],
        "joint_attention_dim": 64,
        "num_attention_heads": 20,
        "num_layers": 6,
        "pooled_projection_dim": 40,
        "pos_embed_max_size": 64,
        "sample_size": 16,
    },
    vae=_TINY_VAE,
    shard_bytes=150_000_000,
)
"""VLM and DiT of about 340 MiB in float32 each: ComfyUI 0.3.64 gives every model at least 128 MiB."""
