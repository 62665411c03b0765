"""The DiT with references against the stock forward."""

from __future__ import annotations

import torch

from deepgen_npu.model.transformer import predict_velocity


def inputs(pipe, batch=2, height=8, width=6):
    generator = torch.Generator().manual_seed(0)
    config = pipe.transformer.config

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "latents": noise(batch, 16, height, width),
        "timestep": torch.full((batch,), 602.15),
        "prompt_embeds": noise(batch, 11, config["joint_attention_dim"]),
        "pooled_prompt_embeds": noise(batch, config["pooled_projection_dim"]),
    }


@torch.no_grad()
def test_without_references_it_is_the_stock_forward(pipe):
    given = inputs(pipe)
    ours = predict_velocity(pipe.transformer, **given)
    stock = pipe.transformer(
        hidden_states=given["latents"],
        encoder_hidden_states=given["prompt_embeds"],
        pooled_projections=given["pooled_prompt_embeds"],
        timestep=given["timestep"],
        return_dict=False,
    )[0]
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_reference_counts_and_so_does_its_content(pipe):
    given = inputs(pipe)
    one, other = torch.randn(2, 2, 16, 4, 12, generator=torch.Generator().manual_seed(1))
    without = predict_velocity(pipe.transformer, **given)
    first = predict_velocity(pipe.transformer, **given, reference_latents=[one])
    second = predict_velocity(pipe.transformer, **given, reference_latents=[other])
    assert first.shape == without.shape
    assert (first - without).abs().max() > 1e-3
    assert (first - second).abs().max() > 1e-3


@torch.no_grad()
def test_order_of_references_is_no_difference_to_the_dit(pipe):
    """References carry no segment embedding: only their positions count, which equal sizes share."""
    given = inputs(pipe)
    one, other = torch.randn(2, 2, 16, 8, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        predict_velocity(pipe.transformer, **given, reference_latents=[one, other]),
        predict_velocity(pipe.transformer, **given, reference_latents=[other, one]),
        atol=1e-5,
        rtol=1e-4,
    )
