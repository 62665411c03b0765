"""``mask`` and ``keep_unchanged`` of the pipeline and of the command line, with the tiny checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden import TINY
from PIL import Image, ImageDraw

from deepgen_npu import DeepGenPipeline, cli
from deepgen_npu.editing import Drawing
from deepgen_npu.edits.fitting import Fit
from deepgen_npu.image_files import open_image


CALL = {"num_inference_steps": 2, "guidance_scale": 4.0, "seed": 3}
SMALL = {**CALL, "height": 64, "width": 64}
RUN = ["--model_path", str(TINY), "--device", "cpu", "--dtype", "float32", "--num_inference_steps", "2", "--seed", "3"]
SIDES = ["--height", "64", "--width", "64"]


@pytest.fixture(scope="module")
def pipe() -> DeepGenPipeline:
    return DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32)


def photo(width: int = 700, height: int = 500) -> Image.Image:
    """Noise of all levels: any change shows."""
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(image: Image.Image, *boxes: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    for box in boxes:
        ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def assert_equal_outside(edit: Image.Image, image: Image.Image, mask: Image.Image) -> None:
    assert edit.size == image.size
    outside = np.array(mask) == 0
    assert np.array_equal(np.array(edit)[outside], np.array(image)[outside])
    assert not np.array_equal(np.array(edit), np.array(image))


class TestPipeline:
    def test_outside_of_a_mask_not_one_level_changes(self, pipe):
        image = photo()
        mask = mask_of(image, (50, 60, 120, 130), (600, 400, 660, 470))
        output = pipe("a cat", image, mask=mask, num_images_per_prompt=2, **SMALL)
        assert len(output.images) == len(output.kept) == 2 and output.change_masks.shape == (2, 500, 700)
        for edit in output.images:
            assert_equal_outside(edit, image, mask)
        assert not np.array_equal(*map(np.array, output.images))
        assert [region.drawn for region in output.kept[0].regions] == [(64, 64)] * 2
        (again,) = pipe("a cat", image, mask=np.array(mask) > 0, output_type="np", **SMALL).images
        # Two rows at once take other kernels: equal up to rounding.
        assert np.abs((again * 255).round() - np.array(output.images[0])).max() <= 1

    def test_what_an_edit_left_alone_is_the_images(self, pipe, monkeypatch):
        image = photo(700, 640)

        def unchanged(latents, output_type):
            """The model leaves all but a square alone."""
            assert output_type == "pt" and latents.shape[-2:] == (352 // 8, 384 // 8)
            pixels = np.array(Fit.padded(640, 700, 352, 384).apply(image)) / 255
            pixels[130:190, 160:240] = (0.9, 0.1, 0.1)
            return torch.from_numpy(pixels).float().permute(2, 0, 1)[None]

        monkeypatch.setattr(pipe, "decode", unchanged)
        output = pipe("a red square", image, keep_unchanged=True, output_type="pt", **CALL)
        (edit,), (mask,) = output.images, output.change_masks
        assert edit.shape == (3, 640, 700)
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        assert torch.equal(edit[:, mask == 0], expected[:, mask == 0])
        assert 0.9 < output.kept[0].part < 0.99 and mask[290, 364] == 1 and edit[0, 290, 364] > 0.85

    def test_further_references_and_a_size(self, pipe):
        image, mask = photo(), Image.new("L", (64, 64), 255)
        output = pipe("a cat", [image, photo(90, 200)], mask=mask, height=128, width=192, **CALL)
        assert output.images[0].size == image.size and output.kept[0].regions[0].drawn == (192, 128)
        assert output.kept[0].part == 0

    def test_an_empty_mask_draws_nothing(self, pipe, monkeypatch):
        monkeypatch.setattr(pipe, "denoise", None)
        output = pipe("a cat", photo(), mask=Image.new("L", (64, 64), 0), **CALL)
        assert np.array_equal(np.array(output.images[0]), np.array(photo()))
        assert output.change_masks.max() == 0 and output.kept[0].part == 1

    def test_a_plain_run_has_neither_masks_nor_a_record(self, pipe):
        output = pipe("a cat", height=64, width=64, **CALL)
        assert output.change_masks is None and output.kept is None

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"keep_unchanged": True}, ValueError, "keep_unchanged needs an image to edit"),
            ({"mask": Image.new("L", (8, 8))}, ValueError, "mask needs an image to edit"),
            ({"image": photo(), "mask": "x.png"}, TypeError, "mask must be a PIL image"),
            ({"image": photo(), "keep_unchanged": "yes"}, TypeError, "keep_unchanged must be true or false"),
            ({"image": photo(), "keep_unchanged": True, "height": 64}, ValueError, "pass both or neither"),
            ({"image": photo(), "keep_unchanged": True, "height": 48, "width": 64}, ValueError, "multiple of 32"),
            (
                {"image": photo(), "keep_unchanged": True, "output_type": "latent"},
                ValueError,
                "output_type must be pil, np or pt with mask or keep_unchanged, got 'latent'",
            ),
        ],
    )
    def test_what_cannot_work_is_refused(self, pipe, arguments, error, words):
        with pytest.raises(error, match=words):
            pipe("a cat", **arguments, **CALL)


class Recorder:
    """Stages that note what they get."""

    def __init__(self):
        self.encoded, self.rows = [], []

    def encode(self, prompt, image, negative_prompt, height, width, num_images_per_prompt):
        self.encoded.append((list(prompt), image, num_images_per_prompt))
        return None

    def denoise(
        self, conditioning, latents, num_inference_steps, guidance_scale, callback_on_step_end, guidance_every
    ):
        self.rows.append(latents[:, 0].tolist())
        return latents

    def decode(self, latents, output_type):
        return latents[:, :, None, None].expand(-1, 3, 64, 64)


class TestDrawing:
    @pytest.fixture
    def recorder(self) -> Recorder:
        return Recorder()

    @pytest.fixture
    def drawing(self, recorder) -> Drawing:
        return Drawing(
            recorder, ["a", "b"], "", [photo(64, 64)], 2, lambda height, width: torch.arange(4.0)[:, None], 2, 4.0
        )

    def test_one_image_is_encoded_once_for_all(self, drawing, recorder):
        image = photo(64, 64)
        assert drawing([image] * 4, 64, 64).shape == (4, 3, 64, 64)
        ((prompts, images, copies),) = recorder.encoded
        assert (prompts, copies, len(images)) == (["a", "b"], 2, 2) and images[0] is image
        assert recorder.rows == [[0, 1, 2, 3]]

    def test_each_of_several_images_has_its_prompt_and_its_noise(self, drawing, recorder):
        shown = [photo(64, 64) for _ in range(4)]
        assert drawing(shown, 64, 64)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert [(prompts, copies) for prompts, _, copies in recorder.encoded] == [
            (["a"], 1),
            (["b"], 1),
            (["a"], 1),
            (["b"], 1),
        ]
        assert all(images[0] is one for (_, images, _), one in zip(recorder.encoded, shown, strict=True))
        assert recorder.rows == [[0], [1], [2], [3]]


class TestCommandLine:
    def edit(self, folder, image: Image.Image, *options: str) -> Image.Image:
        image.save(folder / "photo.png")
        output = folder / "edit.png"
        files = ["--input_image", str(folder / "photo.png"), "--output_image", str(output)]
        assert cli.main(["edit", *RUN, *SIDES, "--prompt", "a cat", *files, *options]) == 0
        return Image.open(output)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
    def test_outside_of_a_mask_not_one_level_changes(self, tmp_path, capsys, mode):
        image = photo(600, 450)
        if mode == "I;16":
            image = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        mask = mask_of(image, (50, 60, 250, 130))
        mask.save(tmp_path / "mask.png")
        edit = self.edit(tmp_path, image, "--mask", str(tmp_path / "mask.png"))
        assert_equal_outside(edit, open_image(tmp_path / "photo.png"), mask)
        assert "edit.png: kept 9" in capsys.readouterr().out
        written = json.loads(edit.text["deepgen"])
        assert written["mask"] == "mask.png" and len(written["kept"]["regions"]) == 1
        assert written["kept"]["part"] == pytest.approx(1 - 201 * 71 / 270000, abs=0.01)

    def test_an_image_and_a_mask_that_their_exif_turns(self, tmp_path):
        turned = Image.Exif()
        turned[0x0112] = 6
        image = photo(400, 300)
        image.save(tmp_path / "photo.png", exif=turned)
        mask = mask_of(open_image(tmp_path / "photo.png"), (20, 200, 100, 300))
        sideways = mask.transpose(Image.Transpose.ROTATE_90)
        sideways.save(tmp_path / "mask.png", exif=turned)
        output = tmp_path / "edit.png"
        files = ["--input_image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
        assert cli.main(["edit", *RUN, *SIDES, "--prompt", "a cat", *files, "--output_image", str(output)]) == 0
        assert_equal_outside(Image.open(output), open_image(tmp_path / "photo.png"), mask)

    def test_keep_unchanged_at_the_size_of_the_input(self, tmp_path, capsys):
        edit = self.edit(tmp_path, photo(301, 207), "--keep_unchanged", "--num_images", "1")
        assert edit.size == (301, 207)
        # The tiny model with random weights changes everything.
        assert "edit.png: kept 0.0 % of the pixels; a global edit" in capsys.readouterr().out
        assert json.loads(edit.text["deepgen"])["kept"]["regions"][0]["global_edit"]

    def test_it_is_the_pipelines(self, tmp_path, pipe):
        image = photo()
        mask = mask_of(image, (50, 60, 120, 130))
        mask.save(tmp_path / "mask.png")
        edit = self.edit(tmp_path, image, "--mask", str(tmp_path / "mask.png"), "--keep_unchanged")
        (expected,) = pipe("a cat", image, mask=mask, keep_unchanged=True, **SMALL).images
        assert np.array_equal(np.array(edit), np.array(expected))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--mask", "nothing.png"], "--mask nothing.png does not exist."),
            (["--mask", str(TINY / "model_index.json")], "cannot be read as an image"),
            (["--keep_unchanged", "--follow_input", "stretch"], "--follow_input stretch cannot be combined"),
        ],
    )
    def test_what_cannot_work_is_refused(self, tmp_path, capsys, options, words):
        photo().save(tmp_path / "photo.png")
        assert cli.main(["edit", *RUN, "--prompt", "x", "--input_image", str(tmp_path / "photo.png"), *options]) == 2
        assert words in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--keep_unchanged", "--follow_input"])
    def test_an_input_is_needed(self, capsys, option):
        assert cli.inference([*RUN, option]) == 2
        assert f"{option} needs an --input_image" in capsys.readouterr().err
