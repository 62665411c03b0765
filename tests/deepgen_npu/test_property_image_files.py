"""Property-based: whatever an image file contains, it opens as RGB or ends in one line that names it."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from platforms import not_on_windows
from property_settings import cases, drawn

from deepgen_npu.files import FileError
from deepgen_npu.image_files import MAX_PIXELS, READ, WRITTEN, open_image, output_paths, rehearse, save_image
from deepgen_npu.rgb import to_rgb


Image.init()
KINDS = [kind for kind in READ if kind in Image.SAVE]
# All modes that Pillow makes images of.
MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
MODES += ["I;16", "I;16L", "I;16B", "I;16N"]

sides = st.integers(0, 12) | st.sampled_from([1, 65000])
extremes = st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x80\0"])


@st.composite
def valid_files(draw) -> tuple[str, bytes]:
    """An intact file of one of the formats, of one of the modes that the format supports."""
    kind = draw(st.sampled_from(KINDS))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"])))
    options = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    if draw(st.booleans()) and kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options |= {"save_all": True, "append_images": [image]}
    if draw(st.booleans()) and kind == "TIFF":
        options["compression"] = draw(st.sampled_from(["tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except Exception:  # the format has no such mode, or no such value
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, kind)
    return kind, buffer.getvalue()


@st.composite
def mutated(draw, content: bytes) -> bytes:
    """One change of bytes, of which the head gets more than its share."""
    where = draw(st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content) - 1)))
    new = draw(st.binary(min_size=1, max_size=8) | extremes)
    how = draw(st.sampled_from(["cut", "replace", "insert", "remove", "append"]))
    if how == "cut":
        return content[:where]
    if how == "append":
        return content + new
    rest = {"replace": where + len(new), "insert": where, "remove": where + 20}[how]
    return content[:where] + (b"" if how == "remove" else new) + content[rest:]


@cases(70)
@given(data=st.data())
def test_mutated_files(tmp_path, data):
    kind, content = data.draw(valid_files())
    for _ in range(data.draw(st.integers(1, 3))):
        content = data.draw(mutated(content)) if content else content
    drawn[f"images: a mutated {kind}"] += 1
    path = tmp_path / "a.png"
    path.write_bytes(content)
    opens_or_is_one_line(path)


@cases(30)
@given(
    head=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\0\0WEBPVP8X", b"GIF89a", b"BM"]
    )
    | st.sampled_from(
        [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"P6 ", b"P3 ", b"Pf ", b"\0\0\0 ftypavif", b"%!PS-Adobe"]
    ),
    rest=st.binary(max_size=300),
)
def test_random_bytes_after_a_known_head(tmp_path, head, rest):
    drawn["images: random bytes"] += 1
    path = tmp_path / "a.png"
    path.write_bytes(head + rest)
    opens_or_is_one_line(path)


def opens_or_is_one_line(path) -> None:
    try:
        opened = open_image(path, "--input_image")
    except FileError as error:
        line = str(error)
        assert line.startswith(f"--input_image {path} ") and "\n" not in line and len(line) < len(str(path)) + 400
    else:
        assert opened.mode == "RGB" and 0 < opened.width * opened.height <= MAX_PIXELS and not opened.info


@cases(40)
@given(mode=st.sampled_from(MODES), width=sides, height=sides, data=st.data())
def test_every_mode_becomes_rgb(mode, width, height, data):
    drawn["images: modes"] += 1
    if width * height > 10**6:
        width = 3
    bands = len(Image.new(mode, (1, 1)).tobytes())
    # F of random bytes includes NaN and infinite values.
    image = Image.new(mode, (width, height))
    if width * height:
        needed = len(image.tobytes())
        pattern = data.draw(st.binary(min_size=bands, max_size=64))
        image.frombytes((pattern * (needed // len(pattern) + 1))[:needed])
    transparency = data.draw(st.none() | st.integers(-1, 300) | st.binary(max_size=4) | st.just((1, 2, 3)))
    if transparency is not None:
        image.info["transparency"] = transparency
    image.info["exif"] = data.draw(st.just(b"") | st.binary(max_size=30))
    try:
        shown = to_rgb(image)
    except ValueError as error:
        assert str(error).startswith(
            ("the image must have ", f"an image of the mode {mode} cannot be converted to RGB")
        ), error
        if width * height and mode not in ("F", "LAB") and transparency is None:
            raise
    else:
        assert shown.mode == "RGB" and sorted(shown.size) == sorted((width, height))


@not_on_windows("it takes other names for the same file")
@cases(30)
@given(
    stem=st.text(st.characters(codec=None, exclude_characters="/\0"), min_size=1, max_size=80)
    | st.binary(min_size=1, max_size=80)
    .filter(lambda name: not {0, ord("/")} & set(name))
    .map(lambda name: name.decode("utf-8", "surrogateescape")),
    ending=st.sampled_from([*WRITTEN, ".PNG", ".Jpg", "", ".eps", ".pdf", ".png/"]),
    folder=st.sampled_from(["", "new/", "new/below/", "file/", "folder/"]),
    count=st.integers(1, 3),
    text=st.text(st.characters(codec=None), max_size=20),
)
def test_what_is_rehearsed_is_saved(tmp_path_factory, stem, ending, folder, count, text):
    """Any output name: refused before the run, or each of its images is there afterwards."""
    drawn["images: output names"] += 1
    base = tmp_path_factory.mktemp("names")
    (base / "file").write_bytes(b"")
    (base / "folder" / "a_2.png").mkdir(parents=True)
    parameters = {"prompt": text, "input_images": [stem]}
    before = sorted(base.rglob("*"))
    name = f"{base}/{folder}{stem}{ending}"
    try:
        paths = output_paths(name, count, "--output_image")
        rehearse(paths, 16, 24, parameters, "--output_image")
    except FileError as error:
        assert str(error).startswith((f"--output_image {base}", "--output_image must "))
        assert sorted(base.rglob("*")) == before
        return
    assert sorted(base.rglob("*")) == before and len(set(paths)) == count
    for path in paths:
        save_image(Image.new("RGB", (24, 16), "red"), path, parameters)
        assert open_image(path).size == (24, 16)
    assert len([path for path in base.rglob("*") if path not in before and path.is_file()]) == count


def test_no_mode_of_pillow_is_left_out():
    assert set(getattr(Image, "MODES", [])) <= set(MODES)
