"""Agreement with the original implementation, stage by stage."""

from __future__ import annotations

import pytest
import torch
from golden import CASES, TINY, differences

from deepgen_npu import DeepGenPipeline


TOLERANCE = 1e-4


def test_cases_are_there():
    assert CASES == ["edit", "t2i", "t2i_batch"]


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_original(pipe, case, golden_table):
    found = differences(pipe, case)
    golden_table.extend((case, tensor, difference) for tensor, difference in found.items())
    assert {"initial_latents", "prompt_embeds", "first_model_output", "final_latents", "image"} <= found.keys()
    assert found["initial_latents"] == 0
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_eager_attention(case, golden_table):
    """Transformers' eager attention gives padded rows a mean of everything; ours are zero all the same."""
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device="cpu", attn_implementation="eager")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vlm.model.language_model.config._attn_implementation == "eager"
    found = differences(pipe, case)
    golden_table.append((f"{case} (eager attention)", "final_latents", found["final_latents"]))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 7.0])
def test_padded_rows_survive_any_backend(pipe, monkeypatch, garbage):
    """A backend may leave anything in fully masked rows: the result must not change."""
    prompts = ["a red circle", "a very long prompt about a racoon holding a shiny red apple"]
    expected = pipe.encode_prompt(prompts, height=64, width=64)
    attend = torch.nn.functional.scaled_dot_product_attention
    seen = []

    def spoil(*arguments, attn_mask=None, **options):
        attended = attend(*arguments, attn_mask=attn_mask, **options)
        if attn_mask is not None:  # the decoder's; the connector has no mask
            attended[0, :, :10] = garbage  # all padding: the first prompt is far shorter than the second
            seen.append(attn_mask)
        return attended

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spoil)
    spoiled = pipe.encode_prompt(prompts, height=64, width=64)
    assert seen and all(mask.dtype == torch.bool for mask in seen)
    for one, other in zip(expected, spoiled, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.6), (torch.float16, 0.1)])
def test_lower_precision_stays_close(dtype, tolerance):
    """A coarse bound that a wrong formula exceeds: latents have a deviation of about 1 and peaks of about 5."""
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=dtype, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == pipe.vlm.dtype == pipe.connector.dtype == dtype
    assert pipe.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    for case in CASES:
        found = differences(pipe, case)
        assert found["final_latents"] <= tolerance, (case, found)
