"""The configs of random checkpoints, by size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.tokenizer_files import byte_symbols
from ..checks import must_be
from ..model.architecture import stacked_states


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PROMPT_TEMPLATE = {
    "IMG_START_TOKEN": "<|vision_start|>",
    "IMG_END_TOKEN": "<|vision_end|>",
    "IMG_CONTEXT_TOKEN": "<|image_pad|>",
    "IMG_START_TOKEN_FOR_GENERATION": False,
    "SYSTEM": "<|im_start|>system\n{system}<|im_end|>\n",
    "INSTRUCTION": "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    "SUFFIX": "<|im_end|>",
    "SUFFIX_AS_EOS": True,
    "SEP": "\n",
    "STOP_WORDS": ["<|im_end|>", "<|endoftext|>"],
    "GENERATION": "Generate an image: {input}",
    "CFG": "Generate an image.",
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.35.2",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer: byte-level BPE, with the special tokens after the others.

    Attributes:
        symbols: Tokens in the order of their ids: the 256 bytes, then what the merges make.
        merges: Pairs of symbols, "left right", in the order of merging.
    """

    symbols: tuple[str, ...] = field(default_factory=lambda: tuple(byte_symbols()))
    merges: tuple[str, ...] = ()

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens."""
        return {token: len(self.symbols) + index for index, token in enumerate(SPECIAL_TOKENS)}

    def config(self) -> dict[str, Any]:
        """``tokenizer/tokenizer_config.json``."""
        special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        added = {str(number): {"content": token, **special} for token, number in self.special_ids.items()}
        return {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "errors": "replace",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "model_max_length": 131072,
            "added_tokens_decoder": added,
        }


BYTES = Vocabulary()


@dataclass(frozen=True)
class Size:
    """What distinguishes one size from another.

    Attributes:
        configs: The JSON configs of ``vlm``, ``connector``, ``transformer``, ``vae`` and ``scheduler``.
        shard_bytes: Limit for the tensors in one file of the VLM; gives two shards.
        vocabulary: The tokenizer.
        prompt_template: ``prompt_template.json``.
    """

    configs: Mapping[str, dict[str, Any]]
    shard_bytes: int
    vocabulary: Vocabulary = BYTES
    prompt_template: Mapping[str, Any] = field(default_factory=lambda: PROMPT_TEMPLATE)


def make_size(
    *,
    text: dict[str, Any],
    vision: dict[str, Any],
    connector: dict[str, Any],
    num_queries: int,
    transformer: dict[str, Any],
    vae: dict[str, Any],
    shard_bytes: int,
    vocabulary: Vocabulary = BYTES,
    prompt_template: Mapping[str, Any] = PROMPT_TEMPLATE,
) -> Size:
    """A size from what distinguishes it; what all sizes share, and the dimensions between parts, are filled in.

    Args:
        text: Settings of the decoder in ``vlm/config.json``.
        vision: Settings of the vision tower there.
        connector: Settings of the connector.
        num_queries: Number of its queries.
        transformer: Settings of the DiT.
        vae: Settings of the VAE.
        shard_bytes: See `Size`.
        vocabulary: The tokenizer.
        prompt_template: See `Size`.
    """
    hidden = text["hidden_size"]
    layers = text["num_hidden_layers"]
    width = connector["hidden_size"]
    return Size(
        configs={
            "vlm": _vlm_config(text, vision, vocabulary.special_ids),
            "connector": {
                "connector": connector,
                "num_queries": num_queries,
                "llm_hidden_size": hidden,
                "projector_1_in": len(stacked_states(layers)) * hidden,
                "projector_1_out": width,
                "projector_2_in": width,
                "projector_2_out": transformer["pooled_projection_dim"],
                "projector_3_in": width,
                "projector_3_out": transformer["joint_attention_dim"],
                "max_length": 1024,
            },
            "transformer": {
                "_class_name": "SD3Transformer2DModel",
                "_diffusers_version": "0.35.2",
                "caption_projection_dim": transformer["num_attention_heads"] * transformer["attention_head_dim"],
                "in_channels": 16,
                "out_channels": 16,
                "patch_size": 2,
                "qk_norm": "rms_norm",
                **transformer,
            },
            "vae": {
                "_class_name": "AutoencoderKL",
                "_diffusers_version": "0.35.2",
                "act_fn": "silu",
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "force_upcast": True,
                "in_channels": 3,
                "latent_channels": 16,
                "latents_mean": None,
                "latents_std": None,
                "layers_per_block": 2,
                "mid_block_add_attention": True,
                "out_channels": 3,
                "scaling_factor": 1.5305,
                "shift_factor": 0.0609,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "use_post_quant_conv": False,
                "use_quant_conv": False,
                **vae,
            },
            "scheduler": SCHEDULER,
        },
        shard_bytes=shard_bytes,
        vocabulary=vocabulary,
        prompt_template=prompt_template,
    )


def _vlm_config(text: dict[str, Any], vision: dict[str, Any], token_ids: Mapping[str, int]) -> dict[str, Any]:
    """``vlm/config.json`` as transformers 4.5x writes it: the decoder nested and, in part, at the top too.

    There is no pad_token_id: transformers sets that row of the embedding to zero, while the row of the trained
    model is not zero and the connector attends to padding.
    """
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    # As the published [16, 24, 24] of 64, half a head: a quarter, and the rest in halves.
    temporal = head_dim // 8
    sections = [temporal, (head_dim // 2 - temporal) // 2, (head_dim // 2 - temporal + 1) // 2]
    both = {
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "rope_scaling": {"mrope_section": sections, "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "vision_token_id": token_ids["<|vision_pad|>"],
        **text,
    }
    return {
        **both,
        "dtype": "bfloat16",
        "image_token_id": token_ids["<|image_pad|>"],
        "model_type": "qwen2_5_vl",
        "text_config": {
            **both,
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "layer_types": ["full_attention"] * text["num_hidden_layers"],
            "model_type": "qwen2_5_vl_text",
            "rms_norm_eps": 1e-6,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_cache": True,
        },
        "transformers_version": "4.56.1",
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_config": {
            "hidden_act": "silu",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen2_5_vl",
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            **vision,
        },
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
    }


SIZES: dict[str, Size] = {
    # Every dimension between parts is different, so that a mix-up fails. Images up to 1024 x 1024.
    "tiny": make_size(
        text={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "vocab_size": 288,
        },
        vision={
            "depth": 4,
            "fullatt_block_indexes": [1, 3],
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
        },
        connector={
            "hidden_size": 48,
            "intermediate_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        num_queries=8,
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
        vae={"block_out_channels": [4, 8, 16, 16], "norm_num_groups": 4, "sample_size": 64},
        shard_bytes=500_000,
    ),
    # The published depth and, part by part, the published proportions with a sixth of the elements.
    "benchmark": make_size(
        text={
            "hidden_size": 768,
            "intermediate_size": 4608,
            "num_attention_heads": 12,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "vocab_size": 67584,
        },
        vision={
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_size": 512,
            "intermediate_size": 1368,
            "num_heads": 8,
        },
        connector={
            "hidden_size": 768,
            "intermediate_size": 4480,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
        },
        num_queries=128,
        transformer={
            "attention_head_dim": 64,
            "dual_attention_layers": list(range(13)),
            "joint_attention_dim": 1536,
            "num_attention_heads": 10,
            "num_layers": 24,
            "pooled_projection_dim": 768,
            "pos_embed_max_size": 256,
            "sample_size": 128,
        },
        vae={"block_out_channels": [48, 96, 192, 192], "norm_num_groups": 16, "sample_size": 1024},
        shard_bytes=800_000_000,
    ),
    # The published dimensions: 6,740,556,127 elements. Only the tokenizer, and with it the ids of the special
    # tokens, is the small one.
    "published": make_size(
        text={
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
        vision={
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
        },
        connector={
            "hidden_size": 2048,
            "intermediate_size": 11946,
            "num_hidden_layers": 6,
            "num_attention_heads": 32,
        },
        num_queries=128,
        transformer={
            "attention_head_dim": 64,
            "dual_attention_layers": list(range(13)),
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 24,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "sample_size": 128,
        },
        vae={"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024},
        shard_bytes=5_000_000_000,
    ),
}


def find_size(name: str | Size) -> Size:
    """The size of a name.

    Args:
        name: A key of `SIZES`; a size is returned as it is.

    Raises:
        ValueError: For an unknown name.
    """
    if isinstance(name, Size):
        return name
    if name not in SIZES:
        raise ValueError(must_be("size", f"one of {', '.join(SIZES)}", name))
    return SIZES[name]
