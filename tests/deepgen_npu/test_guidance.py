"""``guidance_every``: the negative branch in every n-th step only, against a loop written out."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from deepgen_npu import DeepGenPipeline
from deepgen_npu.conditioning import Conditioning
from deepgen_npu.denoising import set_timesteps
from deepgen_npu.model import modulation, transformer
from deepgen_npu.model.transformer import predict_velocity


STEPS, SCALE = 6, 4.0


@pytest.fixture(scope="module")
def given(pipe: DeepGenPipeline) -> tuple[Conditioning, torch.Tensor]:
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    return pipe.encode("make it blue", image, "blurred", 64, 64), pipe.prepare_latents(1, 64, 64, seed=3)


def written_out(pipe: DeepGenPipeline, given: tuple[Conditioning, torch.Tensor], every: int) -> torch.Tensor:
    """v = v_positive + (scale - 1) d in each step, d = v_positive - v_negative of the last i with i % every == 0."""
    conditioning, latents = given
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    timesteps, sigmas = set_timesteps(scheduler, STEPS, latents, pipe.transformer.config["patch_size"])
    references = conditioning.reference_latents
    positive = conditioning.prompt_embeds, conditioning.pooled_prompt_embeds
    negative = conditioning.negative_prompt_embeds, conditioning.negative_pooled_prompt_embeds
    difference = torch.zeros(())
    for index, timestep in enumerate(timesteps):
        velocity = predict_velocity(pipe.transformer, latents, timestep[None], *positive, references)
        if index % every == 0:
            difference = velocity - predict_velocity(pipe.transformer, latents, timestep[None], *negative, references)
        latents = latents + (sigmas[index + 1] - sigmas[index]) * (velocity + (SCALE - 1) * difference)
    return latents


def evaluated(pipe: DeepGenPipeline, given: tuple[Conditioning, torch.Tensor], scale: float = SCALE, **options):
    """Final latents, and the rows that each step evaluated."""
    rows = []
    hook = pipe.transformer.proj_out.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    try:
        return pipe.denoise(*given, STEPS, scale, **options), rows
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("every", "rows"), [(2, [2, 1, 2, 1, 2, 1]), (4, [2, 1, 1, 1, 2, 1]), (1000, [2, 1, 1, 1, 1, 1])]
)
def test_the_difference_of_the_last_step_that_had_both_is_kept(pipe, given, every, rows):
    latents, found = evaluated(pipe, given, guidance_every=every)
    assert found == rows
    with torch.no_grad():
        expected = written_out(pipe, given, every)
    assert (latents - expected).abs().max() < 1e-4
    assert (latents - evaluated(pipe, given)[0]).abs().max() > 1e-2, "it is an approximation"


def test_with_one_nothing_changes(pipe, given):
    latents, rows = evaluated(pipe, given)
    assert rows == [2] * STEPS
    again, rows = evaluated(pipe, given, guidance_every=1)
    assert rows == [2] * STEPS and torch.equal(again, latents)


def test_without_guidance_there_is_nothing_to_leave_out(pipe, given):
    latents, rows = evaluated(pipe, given, 1.0, guidance_every=3)
    assert rows == [1] * STEPS and torch.equal(latents, evaluated(pipe, given, 1.0)[0])


def test_the_tables_of_modulation_share_the_bytes_of_one(pipe, given, monkeypatch):
    """And what is computed piece by piece is the same."""
    expected, _ = evaluated(pipe, given, guidance_every=2)
    monkeypatch.setattr(modulation, "MODULATION_BYTES", 2)
    granted = []

    class Table(modulation.ModulationAhead):
        def __init__(self, slots, embeddings, nbytes):
            granted.append(nbytes)
            super().__init__(slots, embeddings, nbytes)

    monkeypatch.setattr(transformer, "ModulationAhead", Table)
    latents, _ = evaluated(pipe, given, guidance_every=2)
    assert granted == [1, 1]
    assert (latents - expected).abs().max() < 1e-4


def test_images_of_the_call_and_of_edits_that_keep_the_rest(pipe, given):
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    call = {"height": 64, "width": 64, "num_inference_steps": 3, "seed": 3, "output_type": "pt"}
    for more in ({}, {"mask": Image.new("L", (64, 64), 255)}):
        usual, kept = (pipe("a cat", image, **call, **more, guidance_every=every).images for every in (1, 2))
        assert not torch.equal(usual, kept)
    with pytest.raises(ValueError, match=r"^guidance_every must be an integer from 1 to 1000, got 0\."):
        pipe("a cat", guidance_every=0)
    with pytest.raises(ValueError, match=r"^guidance_every must be an integer from 1 to 1000, got 1\.5\."):
        pipe.denoise(*given, guidance_every=1.5)
