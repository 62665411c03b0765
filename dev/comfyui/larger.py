"""A random checkpoint whose text side is large enough to be measured: in main memory, and in time on a CPU."""

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
