"""Images of every mode are read as other programs show them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from golden import CASES, load_case
from PIL import Image

from deepgen_npu.images import as_list, from_pixels, to_pixels, to_rgb


def gradient(mode="RGB", size=(40, 20)):
    columns = np.linspace(0, 255, size[0], dtype=np.uint8)
    grey = Image.fromarray(np.tile(columns, (size[1], 1)))
    return grey.convert(mode)


def reopened(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def values(image):
    return np.asarray(to_rgb(image)).astype(int)


def test_references_are_those_of_the_original():
    call, references, golden = load_case("edit")
    assert CASES and len(references) == 1
    pixels = to_pixels(references[0], call["height"], call["width"])
    assert torch.equal(pixels, golden["reference_pixels_0"])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "I"])
def test_every_mode_looks_like_itself(mode):
    source = gradient()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(gradient("L")).astype(np.uint16) * 257)
        assert image.mode == "I;16"
    elif mode == "I":
        image = Image.fromarray(np.asarray(gradient("L")).astype(np.int32) * 257)
    elif mode == "1":
        image = source.convert("L").point(lambda value: 255 * (value > 127), "1")
        source = image.convert("L")
    elif mode == "P":
        image = source.convert("P", palette=Image.Palette.ADAPTIVE)
    else:
        image = source.convert(mode)
    assert np.abs(values(image) - values(source)).max() <= 3


def test_float_images_are_scaled_by_their_range():
    grey = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (20, 1))
    for scale in (1, 255):
        assert np.abs(values(Image.fromarray(grey * scale)) - values(gradient())).max() <= 1


def test_transparency_shows_white():
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    seen = values(image)
    assert (seen[:, :4] == (0, 0, 255)).all() and (seen[:, 4:] == 255).all()


def test_a_transparent_palette_colour_shows_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 0, 0, 255])
    image.paste(1, (0, 0, 4, 8))
    seen = values(reopened(image, transparency=0))
    assert (seen[:, :4] == (0, 0, 255)).all() and (seen[:, 4:] == 255).all()


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    turned = reopened(gradient(), "JPEG", quality=100, exif=exif)
    assert turned.size == (40, 20)
    upright = to_rgb(turned)
    assert upright.size == (20, 40)
    assert values(turned)[0].mean() < 10 < 245 < values(turned)[-1].mean()


def test_lists():
    image = gradient()
    assert as_list(None) == [] and as_list(image) == [image] and as_list((image, image)) == [image, image]
    for wrong, found in (
        ([np.zeros((2, 2, 3))], "a list with ndarray"),
        ("a.png", "str"),
        (b"a", "bytes"),
        (5, "int"),
    ):
        with pytest.raises(TypeError, match=f"^image must be a PIL image or a list of them, got {found}\\.$"):
            as_list(wrong)
    with pytest.raises(ValueError, match=r"^image must be .* got an empty list\. Pass None to generate"):
        as_list([])


def test_pixels_outside_the_range_are_clamped():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    (image,) = from_pixels(pixels, "pil")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
