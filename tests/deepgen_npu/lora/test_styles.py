"""Every style of names gives what merged weights give."""

from __future__ import annotations

import re

import pytest
import torch
from lora_files import STYLES, Example, equal, largest_difference, latents, merged, save, state

from deepgen_npu.checkpoint.tensor_shapes import transformer as shapes_of
from deepgen_npu.lora.file import inspect


TOLERANCE = 1e-5


def with_weights(pipe, weights) -> torch.Tensor:
    """Final latents of a run with these weights."""
    kept = state(pipe.transformer)
    pipe.transformer.load_state_dict(weights)
    try:
        return latents(pipe)
    finally:
        pipe.transformer.load_state_dict(kept)


@pytest.fixture(scope="module")
def example(loaded) -> Example:
    return Example.of(loaded[0].transformer)


@pytest.fixture(scope="module")
def expected(loaded, example) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Merged weights, and the latents that they give."""
    pipe, before = loaded
    weights = merged(before, example.deltas())
    found = with_weights(pipe, weights)
    assert (found - latents(pipe)).abs().max() > 0.1, "the LoRA changes the image"
    return weights, found


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("alpha", [True, False])
def test_a_lora_gives_what_merged_weights_give(own, example, expected, before, tmp_path, style, alpha):
    name = own.load_lora_weights(example.save(tmp_path / "a.safetensors", style, alpha))
    assert name == "a" and own.adapter_weights == {"a": 1.0}
    assert largest_difference(state(own.transformer), expected[0]) <= TOLERANCE
    assert (latents(own) - expected[1]).abs().max() <= TOLERANCE
    own.unload_lora_weights()
    assert equal(state(own.transformer), before) and own.adapter_weights == {}


def test_attention_processors_of_old_diffusers(own, before, tmp_path):
    layers = {f"transformer_blocks.0.attn.{name}": 2 for name in ("to_q", "to_out.0", "add_k_proj")}
    example = Example.of(own.transformer, layers=layers)
    tensors = {}
    for name, (up, down, alpha) in example.factors.items():
        name = name.removesuffix(".0").replace(".attn.", ".attn.processor.")
        tensors[f"{name}_lora.up.weight"], tensors[f"{name}_lora.down.weight"] = up * (alpha / len(down)), down
    own.load_lora_weights(save(tmp_path / "a.safetensors", tensors))
    assert largest_difference(state(own.transformer), merged(before, example.deltas())) <= TOLERANCE


# Names of the reference implementation: those of the keys of SD3.5's own checkpoint, and how diffusers'
# scripts/convert_sd3_to_diffusers.py turns each into its own.

QKV = {
    "x_block.attn.qkv": "attn.to_{}",
    "context_block.attn.qkv": "attn.add_{}_proj",
    "x_block.attn2.qkv": "attn2.to_{}",
}
IN_BLOCKS = {
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
AROUND = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SWAPPED = ("norm_out.linear", "transformer_blocks.3.norm1_context.linear")
"""Shift and scale, which diffusers has the other way round."""


def reference_layers(before) -> dict[str, list[str]]:
    """The modules that each layer of the reference implementation is made of."""
    found = {name: [module] for name, module in AROUND.items()}
    for block in range(4):
        for name, module in IN_BLOCKS.items():
            found[f"joint_blocks.{block}.{name}"] = [f"transformer_blocks.{block}.{module}"]
        for name, pattern in QKV.items():
            found[f"joint_blocks.{block}.{name}"] = [f"transformer_blocks.{block}.{pattern.format(x)}" for x in "qkv"]
    return {name: modules for name, modules in found.items() if f"{modules[0]}.weight" in before}


@pytest.mark.parametrize("style", ["kohya", "ComfyUI"])
def test_names_of_the_reference_implementation(own, before, tmp_path, style):
    """Every layer of the DiT, with a bias, by full differences of the fused layers, and by a rank in half of them."""
    generator = torch.Generator().manual_seed(5)
    tensors, deltas = {}, {}
    layers = reference_layers(before)
    for number, (name, modules) in enumerate(layers.items()):
        key = f"lora_unet_{name.replace('.', '_')}" if style == "kohya" else f"model.diffusion_model.{name}"
        rows = sum(len(before[f"{module}.weight"]) for module in modules)
        shape = (rows, *before[f"{modules[0]}.weight"].shape[1:])
        if number % 2 and len(shape) > 1:
            up = torch.randn(rows, 2, *(1 for _ in shape[2:]), generator=generator) * 0.1
            down = torch.randn(2, *shape[1:], generator=generator) * 0.1
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            weight = (up.double().flatten(1) @ down.double().flatten(1)).reshape(shape)
        else:
            weight = tensors[f"{key}.diff"] = torch.randn(shape, generator=generator) * 0.1
        changes = {"weight": weight.double()}
        if f"{modules[0]}.bias" in before:
            changes["bias"] = tensors[f"{key}.diff_b"] = torch.randn(rows, generator=generator) * 0.1
        for kind, change in changes.items():
            if modules[0] in SWAPPED:
                shift, scale = change.chunk(2)
                change = torch.cat([scale, shift])
            parts = change.split([len(before[f"{module}.weight"]) for module in modules])
            deltas |= {f"{module}.{kind}": part.double() for module, part in zip(modules, parts, strict=True)}
    assert deltas.keys() == before.keys() - {"pos_embed.pos_embed"}, "all layers are covered"
    own.load_lora_weights(save(tmp_path / "a.safetensors", tensors))
    expected = merged(before, deltas)
    assert largest_difference(state(own.transformer), expected) <= TOLERANCE
    assert (latents(own) - with_weights(own, expected)).abs().max() <= TOLERANCE


def test_queries_keys_and_values_fused_and_apart_in_one_file(own, before, tmp_path):
    example = Example.of(own.transformer, layers={"transformer_blocks.0.attn.to_k": 2})
    fused = torch.full((96, 32), 0.25)
    tensors = {**example.tensors(), "diffusion_model.joint_blocks.0.x_block.attn.qkv.diff": fused}
    own.load_lora_weights(save(tmp_path / "a.safetensors", tensors))
    parts = zip("qkv", fused.double().split(32), strict=True)
    expected = merged(
        before, {f"transformer_blocks.0.attn.to_{x}.weight": part for x, part in parts}, example.deltas()
    )
    assert largest_difference(state(own.transformer), expected) <= TOLERANCE


def test_names_of_the_published_size_are_all_found(tmp_path):
    """24 blocks, of which the first 13 have a second attention: with dots and with underscores."""
    config = {
        **{"num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536, "qk_norm": "rms_norm"},
        **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "pos_embed_max_size": 384, "num_layers": 24},
        **{"pooled_projection_dim": 2048, "joint_attention_dim": 4096, "dual_attention_layers": list(range(13))},
    }
    shapes = shapes_of(config)
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    assert len(weights) > 500
    for down, up, joined in (STYLES["PEFT"], STYLES["kohya"]):
        tensors = {}
        for name, shape in weights.items():
            if len(shape) > 1:
                name = name.replace(".", "_") if joined else name
                tensors[up.format(name)] = torch.zeros(shape[0], 1, *(1 for _ in shape[2:]), dtype=torch.bfloat16)
                tensors[down.format(name)] = torch.zeros(1, *shape[1:], dtype=torch.bfloat16)
        found = inspect(save(tmp_path / "a.safetensors", tensors), shapes)
        assert len(found.changes) == len(tensors) / 2 and not found.unmatched


def test_names_that_only_look_alike_are_not_found(loaded, tmp_path):
    pipe, before = loaded
    tensors = Example.of(pipe.transformer).tensors()
    others = (
        *("transformer.transformer_blocks.4.attn.to_q", "transformer.transformer_blocks.3.attn.to_add_out"),
        *("transformer.transformer_blocks.3.attn2.to_q", "lora_te1_transformer_blocks_0_attn_to_q"),
        *("transformer_blocks_0_attn_to_q", "xtransformer_blocks.0.attn.to_q", "transformer_blocks.00.attn.to_q"),
        *("lora_unet_transformer_blocks.0.attn.to_q", "joint_blocks.0.context_block.attn2.qkv"),
    )
    more = {f"{name}.lora_A.weight": torch.ones(2, 32) for name in others}
    path = save(tmp_path / "a.safetensors", {**tensors, **more})
    shapes = {name: tuple(tensor.shape) for name, tensor in before.items()}
    assert inspect(path, shapes).unmatched == tuple(sorted(more))


def test_keys_that_match_nothing_are_listed_once(own, tmp_path, caplog):
    tensors = Example.of(own.transformer).tensors()
    tensors |= {f"text_encoder.layers.{index}.fc1.lora_A.weight": torch.ones(2, 4) for index in range(30)}
    # A norm without a bias has nothing that such a key could change; an alpha alone changes nothing.
    tensors["transformer.transformer_blocks.0.attn.norm_q.b_norm"] = torch.ones(16)
    tensors["transformer.transformer_blocks.0.ff.net.2.alpha"] = torch.ones(())
    path = save(tmp_path / "a.safetensors", tensors)
    own.load_lora_weights(path)
    own.set_adapters("a", 0.5)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(
        f"{path}: 32 keys match nothing in DeepGen's DiT and have no effect: text_encoder.layers.0."
    )
    assert line.endswith(" and 12 more.") and len(re.findall(r"text_encoder|norm_q|net\.2", line)) == 20
