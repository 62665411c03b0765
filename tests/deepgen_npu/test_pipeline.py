"""What a user does with the pipeline."""

from __future__ import annotations

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from golden import TINY
from PIL import Image

from deepgen_npu import CheckpointError, DeepGenPipeline
from deepgen_npu.conditioning import Conditioning
from deepgen_npu.placement import StayInPlace


SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 7}


def random_image(seed=0, size=(96, 64), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def run(pipe, prompt="a red circle", **changes):
    return pipe(prompt, **{**SMALL, "output_type": "pt", **changes}).images


class TestResults:
    def test_output_types(self, pipe):
        pt = run(pipe)
        assert pt.shape == (1, 3, 64, 64) and pt.dtype == torch.float32 and pt.min() >= 0 and pt.max() <= 1
        array = run(pipe, output_type="np")
        assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
        (pil,) = run(pipe, output_type="pil")
        assert pil.size == (64, 64)
        assert np.array_equal(np.asarray(pil), (array[0] * 255).round().astype(np.uint8))
        latents = run(pipe, output_type="latent")
        assert latents.shape == (1, 16, 8, 8)
        assert torch.equal(pipe.decode(latents, "pt"), pt)

    @pytest.mark.parametrize("image", [None, random_image()])
    def test_reruns_are_bit_identical(self, pipe, image):
        torch.manual_seed(1)
        first = run(pipe, image=image)
        torch.manual_seed(2)  # a global random number anywhere would show
        assert torch.equal(run(pipe, image=image), first)
        assert not torch.equal(run(pipe, image=image, seed=8), first)

    def test_the_call_is_its_three_stages(self, pipe):
        conditioning = pipe.encode("a red circle", height=64, width=64)
        latents = pipe.prepare_latents(1, 64, 64, seed=7)
        latents = pipe.denoise(conditioning, latents, num_inference_steps=2)
        assert torch.equal(pipe.decode(latents, "pt"), run(pipe))

    def test_sizes_need_not_be_square(self, pipe):
        assert run(pipe, height=48, width=112).shape == (1, 3, 48, 112)
        assert run(pipe, image=random_image(), height=96, width=160).shape == (1, 3, 96, 160)

    def test_seed_generator_and_latents_agree(self, pipe):
        expected = run(pipe)
        assert torch.equal(run(pipe, seed=None, generator=torch.Generator().manual_seed(7)), expected)
        noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))
        assert torch.equal(run(pipe, seed=None, latents=noise), expected)

    def test_numbers_may_be_numpys(self, pipe):
        expected = run(pipe)
        numbers = {
            "seed": np.int64(7),
            "height": np.int32(64),
            "width": np.uint16(64),
            "num_inference_steps": np.int8(2),
        }
        assert torch.equal(run(pipe, **numbers, guidance_scale=np.float32(4)), expected)

    def test_the_largest_seed_works(self, pipe):
        run(pipe, seed=2**64 - 1, num_inference_steps=1)


class TestPrompts:
    def test_batches_and_copies_come_in_the_originals_order(self, pipe):
        prompts = ["a red circle", "ein blaues Quadrat"]
        images = run(pipe, prompts, num_images_per_prompt=2)
        assert images.shape == (4, 3, 64, 64)
        noise = pipe.prepare_latents(4, 64, 64, seed=7)
        for index in range(4):
            # p1, p2, p1, p2, each with its own noise. The pair is kept together: padding takes part.
            pair = noise[[index, index]]
            alone = run(pipe, prompts, seed=None, latents=pair)[index % 2]
            torch.testing.assert_close(images[index], alone, atol=1e-4, rtol=0)
        assert (images[0] - images[2]).abs().max() > 0.01

    def test_padding_counts_as_in_the_original(self, pipe):
        alone = pipe.encode_prompt("a cat", height=64, width=64)[1]
        padded = pipe.encode_prompt(["a cat", "a cat on a very long and winding road"], height=64, width=64)[1]
        assert (alone[0] - padded[0]).abs().max() > 1e-4

    @pytest.mark.parametrize(
        "prompt", ["", " ", "{input}", "100 % \\ \"quoted\" 'x' {}", "\u4e00\u53ea\u732b", "\U0001f408", "word " * 410]
    )
    def test_any_text_is_a_prompt(self, pipe, prompt):
        # The tiny model's 2,048 max_position_embeddings are no limit, as they are none for the published model.
        plain = run(pipe, "a red circle", num_inference_steps=1)
        assert (run(pipe, prompt, num_inference_steps=1) - plain).abs().max() > 0

    def test_text_alone_needs_no_size(self, pipe):
        """512, the default, is more than the tiny checkpoint can draw."""
        embeds = pipe.encode_prompt("a cat")
        assert all(map(torch.equal, embeds, pipe.encode_prompt("a cat", negative_prompt=None, height=64, width=64)))

    def test_negative_prompts_count_only_with_guidance(self, pipe):
        noise = pipe.prepare_latents(1, 64, 64, seed=7)
        steered = [run(pipe, negative_prompt=negative, seed=None, latents=noise) for negative in ("aaaaaa", "bbbbbb")]
        assert not torch.equal(*steered)
        # The same length, so that the padding of the joint batch is the same.
        free = [
            run(pipe, negative_prompt=negative, seed=None, latents=noise, guidance_scale=1.0)
            for negative in ("aaaaaa", "bbbbbb")
        ]
        torch.testing.assert_close(*free, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("scale", [0.0, 1.0])
    def test_without_guidance_only_the_prompt_is_evaluated(self, pipe, scale):
        rows = []
        hook = pipe.transformer.proj_out.register_forward_hook(lambda *a: rows.append(len(a[-1])))
        try:
            run(pipe, guidance_scale=scale)
            assert rows == [1, 1]
            rows.clear()
            run(pipe, guidance_scale=1.01)
            assert rows == [2, 2]
        finally:
            hook.remove()


class TestReferences:
    def test_every_reference_counts(self, pipe):
        one, two = random_image(1), random_image(2)
        results = [run(pipe, image=image) for image in (None, one, [one], [one, two], [two, one], [one, two, two])]
        assert torch.equal(results[1], results[2])
        for first, second in ((0, 1), (1, 3), (3, 4), (3, 5)):
            assert (results[first] - results[second]).abs().max() > 1e-3

    def test_a_batch_shares_the_references(self, pipe):
        images = run(pipe, ["a", "b"], image=[random_image(1), random_image(2)], num_images_per_prompt=2)
        assert images.shape == (4, 3, 64, 64)

    def test_reference_latents_are_the_mode_in_scaled_space(self, pipe):
        pixels = torch.rand(1, 3, 64, 64) * 2 - 1
        latents = pipe.encode_image(pixels)
        mode = pipe.vae.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(latents, (mode - 0.0609) * 1.5305)
        assert (pipe.decode_latents(latents) - pipe.vae.decode(mode).sample).abs().max() < 1e-4


class TestCallback:
    def test_it_sees_every_step_with_latents_and_x0(self, pipe):
        seen = []
        latents = run(
            pipe, num_inference_steps=3, output_type="latent", callback_on_step_end=lambda *a: seen.append(a)
        )
        assert [step for _, step, _, _ in seen] == [0, 1, 2]
        assert [float(timestep) for _, _, timestep, _ in seen] == pytest.approx([1000, 750, 8.9286], rel=0.2)
        assert all(given is pipe for given, *_ in seen)
        last = seen[-1][3]
        assert torch.equal(last["latents"], latents)
        # The last step goes to sigma 0, so there the estimate is the result.
        torch.testing.assert_close(last["x0"], latents, atol=1e-5, rtol=1e-5)
        first = seen[0][3]
        assert first["x0"].shape == latents.shape and (first["x0"] - first["latents"]).abs().max() > 0.1

    def test_it_may_replace_the_latents(self, pipe):
        noise = pipe.prepare_latents(1, 64, 64, seed=9)
        result = run(pipe, output_type="latent", callback_on_step_end=lambda p, step, t, given: {"latents": noise})
        assert torch.equal(result, noise)

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            ([], r"^callback_on_step_end must return a dict or None, got list\.$"),
            (
                {"latents": torch.zeros(1, 16, 8, 9)},
                r"^latents returned by callback_on_step_end must have the shape \[1, 16, 8, 8\], got \[1, 16, 8, 9\]",
            ),
        ],
    )
    def test_what_it_returns_is_checked(self, pipe, returned, words):
        with pytest.raises((TypeError, ValueError), match=words):
            run(pipe, callback_on_step_end=lambda *_: returned)

    def test_replaced_latents_may_have_another_dtype(self, pipe):
        run(pipe, callback_on_step_end=lambda p, step, t, given: {"latents": given["latents"].double()})

    def test_an_exception_ends_the_run_and_the_next_is_unharmed(self, pipe):
        expected = run(pipe)
        steps = []

        def stop(pipe, step, timestep, tensors):
            steps.append(step)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(pipe, num_inference_steps=5, callback_on_step_end=stop)
        assert steps == [0]
        assert torch.is_grad_enabled()
        assert torch.equal(run(pipe), expected)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"height": 100}, "height must be a multiple of 16 from 16 to 384, got 100 (nearest: 96, 112)."),
            ({"width": 400}, "width must be a multiple of 16 from 16 to 384, got 400 (nearest: 384)."),
            ({"width": 0}, "width must be a multiple of 16 from 16 to 384, got 0 (nearest: 16)."),
            (
                {"height": 48, "image": random_image()},
                "height must be a multiple of 32 from 32 to 384, got 48 (nearest: 32, 64). Editing takes",
            ),
            ({"height": 64.0}, "height must be a multiple of 16 from 16 to 384, got 64.0."),
            ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 1000, got 0."),
            ({"num_images_per_prompt": 0}, "num_images_per_prompt must be an integer from 1 to 1000, got 0."),
            ({"output_type": "jpg"}, "output_type must be one of pil, np, pt, latent, got 'jpg'."),
            ({"guidance_scale": "4"}, "guidance_scale must be a number from 0 to 100, got '4'."),
            ({"guidance_scale": float("nan")}, "guidance_scale must be a number from 0 to 100, got nan."),
            ({"guidance_scale": float("inf")}, "guidance_scale must be a number from 0 to 100, got inf."),
            ({"seed": -1}, "seed must be an integer from 0 to 2**64 - 1, got -1."),
            ({"seed": True}, "seed must be an integer from 0 to 2**64 - 1, got True."),
            ({"seed": None, "generator": [torch.Generator()]}, "generator must be one torch.Generator, "),
            ({"latents": np.zeros((1, 16, 8, 8))}, "latents must be a torch.Tensor, got ndarray."),
            ({"seed": 1, "generator": torch.Generator()}, "seed and generator cannot be combined: pass one of them."),
            (
                {"width": 96, "latents": torch.zeros(1, 16, 12, 8)},
                "latents must have the shape [1, 16, 8, 12] for 1 image of 96 x 64, got [1, 16, 12, 8].",
            ),
            (
                {"prompt": ["a", "b"], "height": 96, "latents": torch.zeros(1, 16, 12, 8)},
                "latents must have the shape [2, 16, 12, 8] for 2 images of 64 x 96, got [1, 16, 12, 8].",
            ),
            ({"image": "cat.png"}, "image must be a PIL image or a list of them, got str."),
            ({"image": []}, "image must be a PIL image or a list of them, got an empty list. Pass None to generate"),
            ({"prompt": 5}, "prompt must be a string or a list of strings, got 5."),
            ({"prompt": []}, "prompt must be a string or a list of strings, got []."),
            ({"prompt": "<|image_pad|> a"}, "<|image_pad|>"),
            ({"negative_prompt": ["a"]}, "negative_prompt must be a string (one for the whole batch), got list."),
        ],
    )
    def test_bad_input_is_refused_before_anything_runs(self, pipe, monkeypatch, changes, words):
        def too_late(part, nbytes):
            raise AssertionError(f"{part} ran")

        monkeypatch.setattr(pipe.placement, "activate", too_late)
        with pytest.raises((ValueError, TypeError)) as caught:
            pipe(**{"prompt": "a", **SMALL, **changes})
        assert words in str(caught.value)

    def test_the_shape_of_latents_is_explained_by_width_and_height(self, pipe):
        """Typed in as it stands, the size of the message fits the shape that it asks for."""
        conditioning = Conditioning(*[torch.zeros(1, 4, 4)] * 4, height=512, width=768)
        with pytest.raises(
            ValueError, match=r"^latents must .*\[1, 16, 64, 96\] for 1 image of 768 x 512, got"
        ) as caught:
            pipe.denoise(conditioning, torch.zeros(1, 16, 96, 64))
        width, height = map(int, re.search(r"of (\d+) x (\d+),", str(caught.value)).groups())
        assert list(pipe.prepare_latents(1, height, width).shape) == [1, 16, 64, 96]

    def test_latents_that_are_not_finite_are_an_error_that_helps(self, pipe):
        noise = pipe.prepare_latents(1, 64, 64, seed=1)
        noise[0, 3, 2, 1] = float("nan")
        with pytest.raises(FloatingPointError, match=r"NaN or infinite in torch.float32.*guidance scale") as caught:
            run(pipe, seed=None, latents=noise)
        assert str(caught.value).endswith("check the files of the model with the command check.")

    def test_the_advice_names_another_dtype(self):
        pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype="float16", device="cpu")
        pipe.set_progress_bar_config(disable=True)
        pipe.transformer.proj_out.weight.fill_(60000)  # the largest number is 65504
        with pytest.raises(FloatingPointError, match=r"guidance scale, or choose float32 as dtype, or bfloat16"):
            run(pipe)

    def test_weights_that_are_not_finite_are_named(self):
        pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype="float32", device="cpu")
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.decoder.conv_in.bias[2] = float("nan")
        with pytest.raises(FloatingPointError, match=r"decoder.conv_in.bias of the vae is .* Download it again"):
            run(pipe)


class Places:
    """Where each part was last sent, and how often. It stands in for a device that this machine lacks."""

    def __init__(self, pipe, monkeypatch):
        self.at = {}
        for name in ("vlm", "connector", "transformer", "vae"):
            part = pipe.components[name]
            monkeypatch.setattr(part, "to", lambda device, name=name: self.send(name, device))

    def send(self, name, device):
        self.at[name] = str(device)

    def on_device(self):
        return sorted(name for name, place in self.at.items() if place != "cpu")


class TestPlacement:
    def test_offload_gives_the_same_image_with_one_part_at_a_time_on_the_device(self, pipe, monkeypatch):
        expected = run(pipe, image=random_image())
        offloaded = DeepGenPipeline(**pipe.components)
        offloaded.set_progress_bar_config(disable=True)
        offloaded.enable_model_cpu_offload("cpu")
        offloaded.placement.device = "elsewhere"
        monkeypatch.setattr("deepgen_npu.placement.prepare_thread", lambda device: None)
        places, seen = Places(pipe, monkeypatch), []
        activate = offloaded.placement.activate

        def watch(part, nbytes):
            assert activate(part, nbytes) == "elsewhere"
            seen.append(places.on_device())
            return torch.device("cpu")

        monkeypatch.setattr(offloaded.placement, "activate", watch)
        assert torch.equal(run(offloaded, image=random_image()), expected)
        assert seen == [["vlm"], ["connector"], ["vae"], ["transformer"], ["vae"]]
        assert places.on_device() == [], "after the run"

        with pytest.raises(KeyboardInterrupt):
            run(offloaded, callback_on_step_end=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert places.on_device() == [], "after a cancelled run"

    def test_to_moves_every_part_and_ends_offload(self, pipe, monkeypatch):
        again = DeepGenPipeline(**pipe.components)
        again.enable_model_cpu_offload("cpu")
        places = Places(pipe, monkeypatch)
        again.to("cpu")
        assert places.at == dict.fromkeys(("vlm", "connector", "transformer", "vae"), "cpu")
        assert isinstance(again.placement, StayInPlace)

    def test_several_sets_of_references_need_each_part_once(self, pipe, monkeypatch):
        order, activate = [], pipe.placement.activate
        monkeypatch.setattr(pipe.placement, "activate", lambda part, nbytes: order.append(part) or activate(part))
        sets = [[random_image(1)], [random_image(2), random_image(3)], [random_image(4)]]
        each = pipe.encode_each("a", sets, height=64, width=64)
        assert order == ["vlm"] * 3 + ["connector"] * 3 + ["vae"] * 4
        for one, images in zip(each, sets, strict=True):
            alone = pipe.encode("a", images, height=64, width=64)
            assert torch.equal(one.prompt_embeds, alone.prompt_embeds)
            assert [*map(torch.equal, one.reference_latents, alone.reference_latents)] == [True] * len(images)

    def test_images_are_decoded_one_by_one(self, pipe):
        rows = []
        hook = pipe.vae.decoder.register_forward_hook(lambda *given: rows.append(len(given[-1])))
        try:
            run(pipe, num_images_per_prompt=3)
        finally:
            hook.remove()
        assert rows == [1, 1, 1]

    def test_runs_may_overlap(self, pipe):
        expected = run(pipe, num_inference_steps=3)
        inner = []
        outer = run(pipe, num_inference_steps=3, callback_on_step_end=lambda *_: inner.append(run(pipe)) and None)
        assert len(inner) == 3 and torch.equal(outer, expected)
        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(lambda _: run(pipe, num_inference_steps=3), range(4)))
        assert all(torch.equal(result, expected) for result in results)

    def test_dtypes_of_the_parts(self):
        pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype="bfloat16", device="cpu")
        for part in (pipe.vlm, pipe.connector, pipe.transformer, pipe.vae):
            assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
            assert not any(parameter.requires_grad for parameter in part.parameters())
            assert not part.training
        # Casting these would move the result away from the published one.
        assert pipe.vlm.model.language_model.rotary_emb.inv_freq.dtype == torch.float32

    def test_components_rebuild_the_pipeline(self, pipe):
        again = DeepGenPipeline(**pipe.components)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(run(again), run(pipe))

    def test_components_of_two_models_are_refused(self, pipe):
        template = dataclasses.replace(pipe.prompt_template, image_token="<|video_pad|>")
        words = r"^image_token_id of vlm/config\.json must be 269, .* of <\|video_pad\|> .*, got 268\.$"
        with pytest.raises(CheckpointError, match=words):
            DeepGenPipeline(**{**pipe.components, "prompt_template": template})

    def test_to_names_a_device_that_is_not_there(self, pipe):
        with pytest.raises(RuntimeError, match="torch_npu is not installed"):
            pipe.to("npu")
        with pytest.raises(ValueError, match=r"^device must be auto, npu, npu:N, cuda, cuda:N or cpu, got 'gpu'\.$"):
            pipe.to("gpu")
        assert pipe.to("cpu") is pipe
