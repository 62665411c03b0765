"""Size and texts of an image file by its header: as if it were opened, but in a hundredth of the time."""

from __future__ import annotations

import json
import os
import struct
import zlib

import pytest
from PIL import Image, ImageFile, PngImagePlugin
from platforms import not_on_windows

from deepgen_npu.files import FileError
from deepgen_npu.image_files import MAX_PIXELS, READ, encoded, open_image, read_parameters, read_size, save_image


Image.init()
KINDS = [kind for kind in READ if kind in Image.SAVE]


def ramp() -> Image.Image:
    return Image.linear_gradient("L").resize((40, 20)).convert("RGB")


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_that_of_the_opened_image(tmp_path, kind):
    path = tmp_path / "a"
    ramp().save(path, kind)
    assert read_size(path) == (40, 20) == open_image(path).size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("GIF", "BMP", "PPM")])
def test_as_a_viewer_turns_it(tmp_path, kind, orientation):
    path = tmp_path / "a"
    ramp().save(path, kind, exif=exif(orientation))
    assert read_size(path) == open_image(path).size == ((20, 40) if orientation > 4 else (40, 20))


def chunks(content: bytes) -> list[bytes]:
    """Of a PNG, behind its first 8 bytes."""
    found, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.append(content[at : at + length + 12])
        at += length + 12
    return found


def test_a_png_may_say_behind_its_pixels_how_it_is_turned(tmp_path):
    path = tmp_path / "a.png"
    ramp().save(path, exif=exif(6))
    content = path.read_bytes()
    parts = {part[4:8]: part for part in chunks(content)}
    path.write_bytes(content[:8] + b"".join(parts[kind] for kind in (b"IHDR", b"IDAT", b"eXIf", b"IEND")))
    assert read_size(path) == open_image(path).size == (20, 40)


def test_no_pixel_is_decoded(tmp_path, monkeypatch):
    """Of a table with 100,000 rows that would take an hour."""
    path = tmp_path / "a.png"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("deepgen", "{}")
    ramp().save(path, pnginfo=text, exif=exif(6))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert read_size(path) == (20, 40)


def header(width: int, height: int) -> bytes:
    """Of a PNG without pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ends = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + ends + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as an image ("),
        (b"text", "cannot be read as an image ("),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as an image ("),
        (header(MAX_PIXELS // 1024, 1025), f"must have at most {MAX_PIXELS} pixels, got 131072 x 1025."),
        (header(100_000, 100_000), f"must have at most {MAX_PIXELS} pixels, got more."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "cannot be read as an image ("),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, words):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_size(path)
    assert str(caught.value).startswith(f"{path} {words}")


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"a\.png does not exist\.$"):
        read_size(tmp_path / "a.png")
    with pytest.raises(FileError, match="must be a regular file, got a folder"):
        read_size(tmp_path)


@not_on_windows("it has no named pipes in folders")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(FileError, match="must be a regular file, got a named pipe"):
        read_size(tmp_path / "a.png")
    assert read_parameters(tmp_path / "a.png") is None


def test_what_a_png_says(tmp_path):
    path = tmp_path / "a.png"
    save_image(ramp(), path, {"prompt": "caf\u00e9 \udcff", "n": 1})
    assert read_parameters(path) == {"prompt": "caf\u00e9 \udcff", "n": 1}
    content = path.read_bytes()
    for damaged in (content[:-30], content[:60], b"", b"text"):
        path.write_bytes(damaged)
        assert read_parameters(path) is None
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_parameters(path)


@pytest.mark.parametrize("text", [None, "{", "[1]", '"x"'])
def test_a_png_that_says_nothing_of_use(tmp_path, text):
    made = PngImagePlugin.PngInfo()
    if text is not None:
        made.add_itxt("deepgen", text)
    ramp().save(tmp_path / "a.png", pnginfo=made)
    assert not read_parameters(tmp_path / "a.png")
    ramp().save(tmp_path / "b.png", "JPEG")
    assert read_parameters(tmp_path / "b.png") is None, "only PNGs have such a text"


def test_the_bytes_of_a_file_are_those_that_are_saved(tmp_path):
    save_image(ramp(), tmp_path / "a.png", {"a": 1})
    assert bytes(encoded(ramp(), "PNG", {"a": 1})) == (tmp_path / "a.png").read_bytes()
    assert json.loads(Image.open(tmp_path / "a.png").text["deepgen"]) == {"a": 1}  # pyright: ignore
    jpeg = bytes(encoded(ramp(), "JPEG", {"a": 1}))
    assert jpeg.startswith(b"\xff\xd8") and b"deepgen" not in jpeg
