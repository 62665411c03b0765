"""The demo checkpoint: the published layout, small, and images that show what the prompt says."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepgen_npu import DeepGenPipeline
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.cli.entry import main
from deepgen_npu.images import to_pixels
from deepgen_npu.locations import DEMO_FOLDER
from deepgen_npu.prompts import EDIT_NEGATIVE_PROMPT
from deepgen_npu.tools.random_checkpoint import is_random_checkpoint, write
from training.judge import Recognised, recognise
from training.scenes import Scene, Thing, render


FOLDER = DEMO_FOLDER


@pytest.fixture(scope="module")
def pipe() -> DeepGenPipeline:
    pipe = DeepGenPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DeepGenPipeline, prompt: str, image=None, **arguments) -> Image.Image:
    arguments = {"height": 64, "width": 64, "seed": 42, **arguments}
    return pipe(prompt, image=image, **arguments).images[0]


def facts(seen: Recognised) -> tuple[str, list[tuple[str, str, str]]]:
    return seen.background, [(thing.colour, thing.shape, thing.place) for thing in seen.things]


class TestFolder:
    def test_it_has_the_files_of_the_published_layout(self, tmp_path):
        published = write(tmp_path / "random", size="tiny")

        def files(folder: Path) -> set[str]:
            return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

        assert files(FOLDER) == files(published)

    def test_it_is_small_and_says_what_it_is(self):
        assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 16_000_000
        assert not is_random_checkpoint(FOLDER)
        assert "not DeepGen 1.0" in (FOLDER / "README.md").read_text(encoding="utf-8")

    def test_dtypes_and_names_are_the_published_ones(self):
        checkpoint = Checkpoint.open(FOLDER)
        stored = {part: {tensor.dtype for tensor in tensors.values()} for part, tensors in checkpoint.tensors.items()}
        assert stored == {"vlm": {"BF16"}, "connector": {"F32"}, "transformer": {"BF16"}, "vae": {"BF16"}}
        assert all(name.startswith(("visual.", "model.")) for name in checkpoint.tensors["vlm"])

    def test_it_knows_its_size(self, pipe):
        assert pipe.sizes.trained_side == 64
        with pytest.raises(ValueError, match=r"^height must be a multiple of 16 from 16 to 128, got 512 "):
            pipe("a red circle")

    def test_its_words_are_tokens(self, pipe):
        for text in ("a small purple circle at the bottom on a gray background", "Make the square orange"):
            assert len(pipe.tokenizer(text)["input_ids"]) == len(text.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "background", "thing"),
    [
        ("a red circle on the left on a white background", "white", ("red", "circle", "left")),
        ("A red circle on the left on a white background.", "white", ("red", "circle", "left")),
        ("draw a blue square at the top on a black background", "black", ("blue", "square", "top")),
        ("gray background, a yellow triangle on the right", "gray", ("yellow", "triangle", "right")),
        ("a picture of a green circle at the bottom on brown", "brown", ("green", "circle", "bottom")),
        ("\u767d\u8272\u80cc\u666f\uff0c\u4e2d\u95f4\u4e00\u4e2a\u7d2b\u8272\u6b63\u65b9\u5f62",
         "white", ("purple", "square", "centre")),
        ("\u53f3\u8fb9\u6709\u4e00\u4e2a\u6a59\u8272\u7684\u5706\u5f62\uff0c\u80cc\u666f\u662f\u9ed1\u8272",
         "black", ("orange", "circle", "right")),
    ],
)  # fmt: skip
def test_an_image_shows_what_the_prompt_says(pipe, prompt, background, thing):
    """Of three seeds at least two: the model is right more often than not, not always."""
    wanted = (background, [thing])
    shown = [facts(recognise(draw(pipe, prompt, seed=seed))) for seed in (1, 2, 3)]
    assert shown.count(wanted) >= 2, shown


@pytest.mark.slow
@pytest.mark.parametrize("negative_prompt", ["", EDIT_NEGATIVE_PROMPT], ids=["none", "that of the node"])
@pytest.mark.parametrize(
    ("instruction", "background", "colour"),
    [
        ("make it blue", "white", "blue"),
        ("change the background to black", "black", "red"),
        ("keep the picture as it is", "white", "red"),
        ("\u628a\u5b83\u53d8\u6210\u7eff\u8272", "white", "green"),
    ],
)
def test_an_edit_follows_the_instruction_and_no_more(pipe, instruction, background, colour, negative_prompt):
    shown = []
    for shape, place in (("circle", "left"), ("square", "top"), ("triangle", "right")):
        original = render(Scene((Thing(shape, "red", place),), "white"))
        edited = draw(pipe, instruction, original, negative_prompt=negative_prompt)
        shown.append(facts(recognise(edited)) == (background, [(colour, shape, place)]))
    assert sum(shown) >= 2, shown


def test_guidance_and_negative_prompt_change_the_image(pipe):
    prompt = "a circle in the middle on a white background"
    images = [
        np.asarray(draw(pipe, prompt, **arguments), dtype=float)
        for arguments in ({}, {"guidance_scale": 1.0}, {"negative_prompt": "red"})
    ]
    assert np.abs(images[0] - images[1]).mean() > 0.5
    assert np.abs(images[0] - images[2]).mean() > 0.5


def test_another_seed_draws_another_image_and_the_same_seed_the_same(pipe):
    rng = random.Random(0)
    prompt = "a green square on the left on a gray background"
    first, second = rng.sample(range(1000), 2)
    same = [np.asarray(draw(pipe, prompt, seed=seed)) for seed in (first, first, second)]
    assert np.array_equal(same[0], same[1]) and not np.array_equal(same[0], same[2])


def test_the_command_line_draws_at_its_size_and_edits(tmp_path):
    drawn, edited = tmp_path / "circle.png", tmp_path / "edited.png"
    common = ["--model_path", str(FOLDER), "--device", "cpu", "--dtype", "float32", "--output_image"]
    prompt = "a red circle on the left on a white background"
    assert main(["generate", *common, str(drawn), "--prompt", prompt]) == 0
    assert main(["edit", *common, str(edited), "--prompt", "make it blue", "--input_image", str(drawn)]) == 0
    for path, colour in ((drawn, "red"), (edited, "blue")):
        with Image.open(path) as image:
            assert image.size == (64, 64)
            assert facts(recognise(image)) == ("white", [(colour, "circle", "left")])


def test_vae_tiles_change_what_they_are_known_to_change(pipe):
    """An approximation that is off by default; up to the size the VAE was trained at it changes nothing.

    Above, this VAE's small tiles (64 pixels, the published VAE's have 1024) are 10.6 levels off on average.
    """
    things = (Thing("circle", "red", "left"), Thing("square", "blue", "right"))
    images = [render(Scene(things, "white", width=side, height=side)) for side in (64, 128)]
    small, large = (pipe.encode_image(to_pixels(image, *image.size)[None]) for image in images)
    whole_small, whole = pipe.decode_latents(small), pipe.decode_latents(large)
    pipe.enable_vae_tiling()
    try:
        assert torch.equal(pipe.decode_latents(small), whole_small)
        levels = (pipe.decode_latents(large) - whole).abs() * 127.5
    finally:
        pipe.disable_vae_tiling()
    assert 5 < levels.mean() < 15
    assert torch.equal(pipe.decode_latents(large), whole)
