"""Encodings are reused, and denoising can start from an image."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from golden import load_case

from deepgen_npu.conditioning import InitImage
from deepgen_npu.encoding_cache import EncodingCache, digest


class TestCache:
    def test_the_least_recently_used_is_evicted_first(self):
        cache = EncodingCache(max_bytes=3 * 40)
        for name in "abc":
            cache.put(name, (torch.ones(10),))
        assert cache.get("a") is not None
        cache.put("d", (torch.ones(10),))
        assert [name for name in "abcd" if cache.get(name)] == ["a", "c", "d"]
        assert cache.nbytes == 120 and len(cache) == 3

    def test_what_is_too_large_is_not_stored(self):
        cache = EncodingCache(max_bytes=39)
        cache.put("a", (torch.ones(10),))
        assert cache.get("a") is None and cache.nbytes == 0

    def test_the_same_key_is_stored_once(self):
        cache = EncodingCache(max_bytes=100)
        for _ in range(5):
            cache.put("a", (torch.ones(10),))
        assert cache.nbytes == 40
        cache.clear()
        assert len(cache) == cache.nbytes == 0

    def test_it_stores_copies(self):
        cache, tensor = EncodingCache(max_bytes=100), torch.ones(3)
        cache.put("a", (tensor,))
        tensor.zero_()
        assert torch.equal(cache.get("a")[0], torch.ones(3))

    def test_images_are_distinguished(self):
        image = torch.rand(3, 4, 6)
        other = image.clone()
        other[0, 0, 0] += 1e-6
        names = {digest(image), digest(image.clone()), digest(other), digest(image.reshape(3, 6, 4))}
        assert len(names) == 3


@pytest.fixture
def counted(pipe):
    """Runs of the parts, with the cache on."""
    counts: Counter[str] = Counter()
    parts = {
        "vlm": pipe.vlm.model.language_model.layers[0].self_attn.q_proj,
        "vision": pipe.vlm.model.visual.blocks[0].attn.qkv,
        "connector": pipe.connector,
        "vae": pipe.vae.encoder.conv_in,
    }
    hooks = [
        part.register_forward_hook(lambda *arguments, name=name: counts.update([name])) for name, part in parts.items()
    ]
    pipe.encodings.max_bytes = 1 << 20
    yield counts
    pipe.encodings.max_bytes = 0
    pipe.encodings.clear()
    for hook in hooks:
        hook.remove()


class TestReuse:
    def test_the_same_again_runs_nothing(self, pipe, counted):
        call, references, _ = load_case("edit")
        size = {"height": call["height"], "width": call["width"]}
        first = pipe.encode("make it blue", references, "blurry", **size)
        assert counted == {"vlm": 1, "vision": len(references), "connector": 1, "vae": len(references)}
        counted.clear()
        again = pipe.encode("make it blue", references, "blurry", **size)
        assert not counted
        assert torch.equal(first.prompt_embeds, again.prompt_embeds)
        assert torch.equal(first.reference_latents[0], again.reference_latents[0])

    def test_another_prompt_does_not_encode_the_image_again(self, pipe, counted):
        call, references, _ = load_case("edit")
        size = {"height": call["height"], "width": call["width"]}
        pipe.encode("make it blue", references, "blurry", **size)
        counted.clear()
        pipe.encode("make it green", references, "blurry", **size)
        assert counted == {"vlm": 1, "connector": 1}
        counted.clear()
        pipe.encode("make it green", references, "", **size)
        assert counted == {"vlm": 1, "connector": 1}, "another negative prompt is another pass"

    def test_text_has_no_size(self, pipe, counted):
        pipe.encode("a cat", height=64, width=64)
        pipe.encode("a cat", height=96, width=64)
        assert counted == {"vlm": 1, "connector": 1}

    def test_kept_results_are_those_of_a_fresh_run(self, pipe, counted):
        call, references, _ = load_case("edit")
        size = {"height": call["height"], "width": call["width"]}
        pipe.encode("make it green", references, "", **size)
        warm = pipe.encode("make it blue", [*references, *references], "", **size)
        pipe.encodings.clear()
        cold = pipe.encode("make it blue", [*references, *references], "", **size)
        assert torch.equal(warm.prompt_embeds, cold.prompt_embeds)

    def test_an_image_that_is_shared_by_a_batch_is_encoded_once(self, pipe, counted):
        pipe.encodings.max_bytes = 0
        call, references, _ = load_case("edit")
        flipped = references[0].transpose(0)
        pipe.encode_each("x", [[references[0], flipped], [references[0]]], "", call["height"], call["width"])
        assert counted["vae"] == 2


class TestInitImage:
    @pytest.fixture
    def run(self, pipe):
        conditioning = pipe.encode("a cat", height=64, width=64)
        noise = pipe.prepare_latents(1, 64, 64, seed=1)
        clean = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))

        def run(init_image=None, steps=4, seen=None):
            def callback(pipe, step, timestep, tensors):
                if seen is not None:
                    seen.append(float(timestep))
                return None

            return pipe.denoise(conditioning, noise, steps, 4.0, callback, init_image)

        run.clean = clean
        return run

    def test_full_strength_leaves_nothing_of_the_image(self, run):
        assert torch.equal(run(), run(InitImage(run.clean)))

    def test_the_steps_are_the_last_of_a_longer_schedule(self, run):
        whole, part = [], []
        run(steps=8, seen=whole)
        run(InitImage(run.clean, strength=0.5), steps=4, seen=part)
        assert part == whole[4:]

    def test_less_strength_stays_nearer(self, run):
        distances = [(run(InitImage(run.clean, strength=s)) - run.clean).abs().mean() for s in (0.1, 0.5, 1.0)]
        assert distances == sorted(distances) and distances[0] < 0.5 * distances[2]

    def test_a_mask_keeps_the_image_to_the_bit(self, run):
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :4] = 1
        for strength in (1.0, 0.5):
            latents = run(InitImage(run.clean, strength, mask))
            assert torch.equal(latents[..., 4:], run.clean[..., 4:])
            assert (latents[..., :4] - run.clean[..., :4]).abs().mean() > 0.01
