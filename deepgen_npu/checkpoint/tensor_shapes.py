"""Names and shapes of all tensors of each part, from its settings.

They are those of `Connector`, of diffusers' ``SD3Transformer2DModel`` and ``AutoencoderKL`` and of transformers'
``Qwen2_5_VLForConditionalGeneration``, without importing any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, outs: int, ins: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outs, ins)}
    if bias:
        shapes[f"{name}.bias"] = (outs,)
    return shapes


def _conv(name: str, outs: int, ins: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (outs, ins, side, side), f"{name}.bias": (outs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def connector(settings: Mapping[str, Any]) -> Shapes:
    """Of the connector: its queries, three projectors and the encoder."""
    encoder = settings["connector"]
    width, inner = encoder["hidden_size"], encoder["intermediate_size"]
    shapes: Shapes = {"meta_queries": (settings["num_queries"], settings["llm_hidden_size"])}
    for index in (1, 2, 3):
        ends = (settings[f"projector_{index}_out"], settings[f"projector_{index}_in"])
        shapes |= _linear(f"projector_{index}", *ends)
    for index in range(encoder["num_hidden_layers"]):
        layer = f"connector.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width) | _linear(f"{layer}.mlp.fc2", width, inner)
    return shapes


def transformer(settings: Mapping[str, Any]) -> Shapes:
    """Of the DiT, with the dual attention of SD3.5-medium in the blocks that have it."""
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    patch, layers = settings["patch_size"], settings["num_layers"]
    head = settings["attention_head_dim"] if settings["qk_norm"] else None
    embed = "time_text_embed"
    shapes: Shapes = {
        "pos_embed.pos_embed": (1, settings["pos_embed_max_size"] ** 2, width),
        **_conv("pos_embed.proj", width, settings["in_channels"], patch),
        # diffusers' sinusoid of a timestep has 256 values.
        **_linear(f"{embed}.timestep_embedder.linear_1", width, 256),
        **_linear(f"{embed}.timestep_embedder.linear_2", width, width),
        **_linear(f"{embed}.text_embedder.linear_1", width, settings["pooled_projection_dim"]),
        **_linear(f"{embed}.text_embedder.linear_2", width, width),
        **_linear("context_embedder", settings["caption_projection_dim"], settings["joint_attention_dim"]),
        **_linear("norm_out.linear", 2 * width, width),
        **_linear("proj_out", patch * patch * settings["out_channels"], width),
    }

    def attention(name: str, projections: tuple[str, ...], norms: tuple[str, ...]) -> Shapes:
        made: Shapes = {}
        for projection in projections:
            made |= _linear(f"{name}.{projection}", width, width)
        if head:
            made |= {f"{name}.{norm}.weight": (head,) for norm in norms}
        return made

    own = ("to_q", "to_k", "to_v", "to_out.0")
    added = ("add_q_proj", "add_k_proj", "add_v_proj")
    for index in range(layers):
        block, last = f"transformer_blocks.{index}", index == layers - 1
        dual = index in settings["dual_attention_layers"]
        # Vectors of the adaptive norms: shift, scale and gate of each layer; of the last one's context no gate.
        shapes |= _linear(f"{block}.norm1.linear", (9 if dual else 6) * width, width)
        shapes |= _linear(f"{block}.norm1_context.linear", (2 if last else 6) * width, width)
        projections = own + added + (() if last else ("to_add_out",))
        shapes |= attention(f"{block}.attn", projections, ("norm_q", "norm_k", "norm_added_q", "norm_added_k"))
        if dual:
            shapes |= attention(f"{block}.attn2", own, ("norm_q", "norm_k"))
        for net in ("ff",) if last else ("ff", "ff_context"):
            shapes |= _linear(f"{block}.{net}.net.0.proj", 4 * width, width)
            shapes |= _linear(f"{block}.{net}.net.2", width, 4 * width)
    return shapes


def vae(settings: Mapping[str, Any]) -> Shapes:
    """Of the VAE, encoder and decoder."""
    channels, latent = settings["block_out_channels"], settings["latent_channels"]
    first, deepest, blocks = channels[0], channels[-1], len(channels)
    layers = settings["layers_per_block"]

    def resnet(name: str, ins: int, outs: int) -> Shapes:
        made = _norm(f"{name}.norm1", ins) | _conv(f"{name}.conv1", outs, ins)
        made |= _norm(f"{name}.norm2", outs) | _conv(f"{name}.conv2", outs, outs)
        return made if ins == outs else made | _conv(f"{name}.conv_shortcut", outs, ins, 1)

    def middle(name: str) -> Shapes:
        made: Shapes = {}
        for index in range(2):
            made |= resnet(f"{name}.resnets.{index}", deepest, deepest)
        if settings["mid_block_add_attention"]:
            made |= _norm(f"{name}.attentions.0.group_norm", deepest)
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                made |= _linear(f"{name}.attentions.0.{projection}", deepest, deepest)
        return made

    shapes = _conv("encoder.conv_in", first, settings["in_channels"]) | middle("encoder.mid_block")
    shapes |= _norm("encoder.conv_norm_out", deepest) | _conv("encoder.conv_out", 2 * latent, deepest)
    shapes |= _conv("decoder.conv_in", deepest, latent) | middle("decoder.mid_block")
    shapes |= _norm("decoder.conv_norm_out", first) | _conv("decoder.conv_out", settings["out_channels"], first)
    for side, order, count, sampler in (
        ("encoder.down_blocks", channels, layers, "downsamplers"),
        ("decoder.up_blocks", channels[::-1], layers + 1, "upsamplers"),
    ):
        before = order[0]
        for block, width in enumerate(order):
            for index in range(count):
                shapes |= resnet(f"{side}.{block}.resnets.{index}", before if index == 0 else width, width)
            if block < blocks - 1:
                shapes |= _conv(f"{side}.{block}.{sampler}.0.conv", width, width)
            before = width
    if settings["use_quant_conv"]:
        shapes |= _conv("quant_conv", 2 * latent, 2 * latent, 1)
    if settings["use_post_quant_conv"]:
        shapes |= _conv("post_quant_conv", latent, latent, 1)
    return shapes


def vlm(settings: Mapping[str, Any]) -> Shapes:
    """Of the VLM without its ``lm_head``, by the names of current transformers."""
    return _decoder(settings["text_config"]) | _tower(settings["vision_config"])


def _decoder(text: Mapping[str, Any]) -> Shapes:
    width, inner, top = text["hidden_size"], text["intermediate_size"], "model.language_model"
    of_keys = width // text["num_attention_heads"] * text["num_key_value_heads"]
    shapes: Shapes = {f"{top}.embed_tokens.weight": (text["vocab_size"], width), f"{top}.norm.weight": (width,)}
    for index in range(text["num_hidden_layers"]):
        layer = f"{top}.layers.{index}"
        shapes |= _linear(f"{layer}.self_attn.q_proj", width, width)
        shapes |= _linear(f"{layer}.self_attn.k_proj", of_keys, width)
        shapes |= _linear(f"{layer}.self_attn.v_proj", of_keys, width)
        shapes |= _linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        for projection in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{layer}.mlp.{projection}", inner, width, bias=False)
        shapes |= _linear(f"{layer}.mlp.down_proj", width, inner, bias=False)
        shapes |= {f"{layer}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def _tower(vision: Mapping[str, Any]) -> Shapes:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    cell = width * vision["spatial_merge_size"] ** 2
    top = "model.visual"
    shapes: Shapes = {
        f"{top}.patch_embed.proj.weight": (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch),
        f"{top}.merger.ln_q.weight": (width,),
        **_linear(f"{top}.merger.mlp.0", cell, cell),
        **_linear(f"{top}.merger.mlp.2", vision["out_hidden_size"], cell),
    }
    for index in range(vision["depth"]):
        block = f"{top}.blocks.{index}"
        shapes |= {f"{block}.norm1.weight": (width,), f"{block}.norm2.weight": (width,)}
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        for projection in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{block}.mlp.{projection}", inner, width)
        shapes |= _linear(f"{block}.mlp.down_proj", width, inner)
    return shapes


SHAPES: dict[str, Callable[[Mapping[str, Any]], Shapes]] = {
    "vlm": vlm,
    "connector": connector,
    "transformer": transformer,
    "vae": vae,
}
