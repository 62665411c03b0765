"""What makes a tensor an image, a latent or a conditioning: the rules alone, without ComfyUI."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from load_module import pack_module


check_tensors = pack_module("nodes.check_tensors")
Conditioning = pack_module("deepgen_npu.conditioning").Conditioning


def refusal(check, *given) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        check("given", *given)
    return str(caught.value)


class TestImage:
    shape = "[batch, height, width, channels] with 1, 3 or 4 channels"

    @pytest.mark.parametrize("channels", [1, 3, 4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_what_is_taken(self, channels, dtype):
        pixels = torch.rand(2, 4, 6, channels, dtype=dtype, requires_grad=True)
        found = check_tensors.image("image", pixels)
        assert torch.equal(found, pixels) and not found.requires_grad

    @pytest.mark.parametrize("shape", [[64, 64, 3], [1, 64, 64, 2], [1, 1, 64, 64, 3]])
    def test_another_shape(self, shape):
        message = f"given must have the shape {self.shape}, got {shape}."
        assert refusal(check_tensors.image, torch.zeros(shape)) == message

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1.0], f"given must be a tensor {shape}, got list."),
            (
                torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
                "given must have the dtype float32, float16, bfloat16 or float64, got uint8.",
            ),
            (
                torch.zeros(1, 4, 4, 3, device="meta"),
                "given must be a dense tensor with values, got a meta tensor.",
            ),
            (torch.zeros(1, 0, 4, 3), "given must have no axis of length 0, got [1, 0, 4, 3]."),
            (torch.full((1, 4, 4, 3), float("nan")), "given must have finite numbers only, got NaN or infinity."),
            (
                torch.zeros(1).expand(1, 20000, 4, 3),
                "given must have at most 1000 images, 16384 along a side and 1073741824 numbers in all, got "
                "[1, 20000, 4, 3].",
            ),
        ],
    )
    def test_what_is_refused(self, value, message):
        assert refusal(check_tensors.image, value) == message


class TestLatent:
    def test_a_latent_keeps_what_else_is_in_it(self):
        samples = torch.rand(2, 16, 8, 8)
        found = check_tensors.latent("latent", {"samples": samples, "type": "audio", "noise_mask": None})
        assert torch.equal(found["samples"], samples) and found["type"] == "audio"

    @pytest.mark.parametrize(("shape", "rows"), [([6, 5], 1), ([1, 6, 5], 1), ([2, 6, 5], 2), ([2, 1, 6, 5], 2)])
    def test_a_mask_gets_a_row_and_a_channel(self, shape, rows):
        mask = torch.rand(shape) * 3 - 1
        found = check_tensors.latent("latent", {"samples": torch.rand(2, 16, 8, 8), "noise_mask": mask})["noise_mask"]
        assert torch.equal(found, mask.reshape(rows, 1, 6, 5).clamp(0, 1))

    def test_a_mask_of_truth_values(self):
        mask = torch.tensor([[True, False]])
        found = check_tensors.latent("latent", {"samples": torch.rand(1, 16, 8, 8), "noise_mask": mask})["noise_mask"]
        assert found.tolist() == [[[[1.0, 0.0]]]]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"other": 1}, "given must have samples, as the latents of VAE Encode have, got ['other']."),
            (
                {"samples": torch.rand(1, 4, 8)},
                "given must have the shape [batch, channels, height, width], as VAE Encode makes it, got [1, 4, 8].",
            ),
            (
                {"samples": torch.full((1, 16, 8, 8), 20000.0)},
                "given must have numbers from -10000 to 10000, as VAE Encode makes them, got 20000 to 20000.",
            ),
            (
                {"samples": torch.rand(2, 16, 8, 8), "noise_mask": torch.rand(3, 8, 8)},
                "given: noise_mask has a batch of 3 but samples has 2: use 1 or 2.",
            ),
            (
                {"samples": torch.rand(2, 16, 8, 8), "noise_mask": torch.rand(8)},
                "given: noise_mask must have the shape [height, width] or [batch, height, width], got [8].",
            ),
            (
                {"samples": torch.rand(2, 16, 8, 8), "batch_index": [1]},
                "given: batch_index must be a list of 2 integers, one for each latent, got [1].",
            ),
            (
                {"samples": torch.rand(1, 16, 8, 8), "batch_index": [4096]},
                "given: batch_index must be an integer from 0 to 4095, got 4096.",
            ),
        ],
    )
    def test_what_is_refused(self, value, message):
        assert refusal(check_tensors.latent, value) == message

    def test_a_number_of_channels(self):
        message = "given must have the shape [batch, 16, height, width], as VAE Encode makes it, got [1, 4, 8, 8]."
        assert refusal(check_tensors.latents, torch.rand(1, 4, 8, 8), 16) == message


def conditioning(height: int = 64, width: int = 96, tokens: int = 7, references: int = 0) -> Conditioning:
    return Conditioning(
        prompt_embeds=torch.rand(1, tokens, 12),
        pooled_prompt_embeds=torch.rand(1, 5),
        negative_prompt_embeds=torch.rand(1, tokens, 12),
        negative_pooled_prompt_embeds=torch.rand(1, 5),
        reference_latents=[torch.rand(1, 16, 8, 12)] * references,
        height=height,
        width=width,
    )


class TestConditioning:
    def test_one_for_each_image(self):
        given = [conditioning(references=2), conditioning(tokens=9)]
        assert check_tensors.conditioning("conditioning", given) == given

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("a text", "given must be the output of DeepGen Encode Prompt, got str."),
            ([[1, {}]], "given must be the output of DeepGen Encode Prompt, got a list of list."),
            ([], "given must be for 1 to 1000 images, got 0."),
            (
                [conditioning(), conditioning(width=64)],
                "given must be for images of one size, got 96 x 64 and 64 x 64.",
            ),
            ([conditioning(height=0)], "given: height must be an integer from 1 to 16384, got 0."),
            (
                [replace(conditioning(), prompt_embeds=torch.rand(2, 7, 12))],
                "given: prompt_embeds must have the shape [1, tokens, 12], got [2, 7, 12].",
            ),
            (
                [conditioning(), replace(conditioning(), pooled_prompt_embeds=torch.rand(1, 6))],
                "given: pooled_prompt_embeds must have the shape [1, 5], got [1, 6].",
            ),
            (
                [replace(conditioning(), prompt_embeds=torch.tensor(1.0))],
                "given: prompt_embeds must have the shape [1, tokens, width], got [].",
            ),
            (
                [replace(conditioning(), prompt_embeds=None)],
                "given: prompt_embeds must be a tensor [1, tokens, width], got NoneType.",
            ),
            (
                [replace(conditioning(), negative_prompt_embeds=torch.rand(1, 6, 12))],
                "given: negative_prompt_embeds must have the shape of prompt_embeds, [1, 7, 12], got [1, 6, 12].",
            ),
            (
                [conditioning(references=17)],
                "given: reference_latents must be a list of at most 16 tensors, got 17.",
            ),
            (
                [replace(conditioning(), reference_latents=[torch.rand(2, 16, 8, 12)])],
                "given: reference_latents must have the shape [1, channels, height, width], got [2, 16, 8, 12].",
            ),
        ],
    )
    def test_what_is_refused(self, value, message):
        assert refusal(check_tensors.conditioning, value) == message


def test_one_or():
    assert [check_tensors.one_or(batch) for batch in (1, 3)] == ["1", "1 or 3"]
