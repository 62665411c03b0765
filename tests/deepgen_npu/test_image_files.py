"""Image files: only decoders of our own process see them, and what is saved is never lost."""

from __future__ import annotations

import ast
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from platforms import linux_only, not_on_windows

from deepgen_npu import files, image_files
from deepgen_npu.files import FileError
from deepgen_npu.image_files import MAX_PIXELS, open_image, output_paths, rehearse, save_image, save_somewhere
from deepgen_npu.rgb import to_rgb


ROOT = Path(__file__).parents[2]
PARAMETERS = {"prompt": "caf\u00e9", "input_images": ["\udcc4\udce3.png"]}


def gradient(width=40, height=20) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *further: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(further) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


# Opening


def test_no_image_is_opened_elsewhere():
    """`Image.open` has all plugins of Pillow, and some start programs."""
    found = []
    for path in [*(ROOT / "deepgen_npu").rglob("*.py"), *(ROOT / "training").rglob("*.py"), *ROOT.glob("nodes/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).endswith("Image"):
                found.append(path.relative_to(ROOT).as_posix())
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert "formats" in [keyword.arg for keyword in node.keywords], (path, node.lineno)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
                assert "open" not in [name.name for name in node.names], path
    assert set(found) == {"deepgen_npu/image_files.py"}


@not_on_windows("the interpreter here is a shell script")
@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg"])
def test_postscript_reaches_no_interpreter(tmp_path, monkeypatch, name):
    mark = tmp_path / "ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # so that it searches again
    path = tmp_path / name
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(FileError, match=r"--input_image .*a\.\w+ cannot be read as an image: it is not PNG, JPEG"):
        open_image(path, "--input_image")
    assert not mark.exists()
    with Image.open(path) as image, pytest.raises(Exception):  # noqa: B017 - otherwise this tests nothing
        image.load()
    assert mark.exists()


@pytest.mark.parametrize("kind", [*image_files.READ, "MPO"])
def test_every_format_opens(tmp_path, kind):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    gradient().save(tmp_path / "a", kind)
    opened = open_image(tmp_path / "a")
    assert opened.mode == "RGB" and opened.size == (40, 20)
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(gradient())).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_animations_and_pages_are_their_first(tmp_path, kind):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a", kind, save_all=True, append_images=[blue])
    assert np.abs(np.asarray(open_image(tmp_path / "a")).astype(int) - np.asarray(red)).max() <= 2


@not_on_windows("it has no named pipes and devices among the files")
def test_what_is_not_a_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, words in (("pipe", "a named pipe"), (".", "a folder"), ("link", "a device")):
        with pytest.raises(FileError, match=f"^--pictures .* must be a regular file, got {words}\\."):
            open_image(tmp_path / name, "--pictures")
    with pytest.raises(FileError, match=r"^--pictures .*none does not exist\.$"):
        open_image(tmp_path / "none", "--pictures")


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (png(12000, 12000), "12000 x 12000"),
        (png(16384, 8193), "16384 x 8193"),
        (png(8193, 16384), "8193 x 16384"),
        (png(60000, 60000), "more"),
        (png(2**31 - 1, 2**31 - 1), "more"),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0), "more"),
        (b"P6 20000 20000 255 ", "more"),
        (
            b"GIF89a"
            + struct.pack("<HHBBB", 30000, 30000, 0, 0, 0)
            + b"\x2c"
            + struct.pack("<HHHHBB", 0, 0, 30000, 30000, 0, 2),
            "more",
        ),
    ],
    ids=["png", "wide png", "high png", "larger png", "largest png", "bmp", "ppm", "gif"],
)
def test_bombs_are_known_by_their_header(tmp_path, recwarn, content, size):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.png must have at most {MAX_PIXELS} pixels, got {size}\.$"):
        open_image(path)
    assert not recwarn.list


def test_bombs_next_to_the_pixels(tmp_path):
    """Texts and profiles that are small in the file; all are decoded by Pillow within its bounds, or not at all."""
    large = zlib.compress(bytes(64 << 20), 9)
    pixels = b"".join(b"\0" + bytes(range(6)) for _ in range(2))
    for further in (b"zTXt", b"iCCP"):
        (tmp_path / "a.png").write_bytes(png(2, 2, chunk(further, b"name\0\0" + large), data=pixels))
        try:
            assert open_image(tmp_path / "a.png").size == (2, 2)
        except FileError as error:
            assert str(tmp_path / "a.png") in str(error) and "ecompressed" in str(error)


@pytest.mark.parametrize("size", [(1, 65000), (65000, 1), (1, 1)])
def test_extreme_shapes_open(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_what_is_cut_off_is_refused(tmp_path, kind):
    gradient(200, 100).save(tmp_path / "a", kind)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(FileError, match="a cannot be read as an image"):
        open_image(tmp_path / "a")


def test_values_that_are_not_colours_are_refused(tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        values = np.full((8, 8), 0.5, np.float32)
        values[3, 3] = value
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(
            FileError,
            match=r"a\.tif cannot be read as an image \(the image must have finite values, got NaN or infinity\)",
        ):
            open_image(tmp_path / "a.tif")


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"^the image must have at least 1 x 1 pixels, got 0 x 768\.$"):
        to_rgb(Image.new("RGB", (0, 768)))


def test_broken_exif_turns_nothing_and_intact_exif_turns_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "a.jpg", exif=exif)
    opened = open_image(tmp_path / "a.jpg")
    assert opened.size == (20, 40)
    assert to_rgb(opened).size == (20, 40), "the image is upright and must not be turned again"
    gradient().save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(tmp_path / "b.jpg").size == (40, 20)


@linux_only("other systems have no such names")
def test_names_that_are_not_utf8_open(tmp_path):
    path = tmp_path / os.fsdecode(b"\xc4\xe3.png")
    gradient().save(path)
    assert open_image(path).size == (40, 20)


# Saving


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "be a file name, not a folder"),
        (".", "be a file name, not a folder"),
        ("new/", "be a file name, not a folder"),
        ("a", r"end in \.png, \.jpg"),
        ("a.eps", r"end in \.png, \.jpg"),
        ("a.pdf", r"end in \.png, \.jpg"),
        (".png", r"end in \.png, \.jpg"),
        ("a.png.", r"end in \.png, \.jpg"),
    ],
)
def test_names_that_an_image_cannot_have(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=rf"^--output_image must {words}.*, got '{re.escape(name)}'\.$"):
        output_paths(name, 2, "--output_image")


def test_names_of_several_images():
    assert output_paths("x/a.PNG", 1) == [Path("x/a.PNG")]
    assert output_paths("x/a.b.png", 3) == [Path("x/a.b_1.png"), Path("x/a.b_2.png"), Path("x/a.b_3.png")]


@pytest.mark.parametrize("ending", image_files.WRITTEN)
def test_what_is_rehearsed_can_be_saved(tmp_path, ending):
    path = tmp_path / "new" / "folder" / f"a{ending.upper()}"
    if image_files.WRITTEN[ending] not in Image.SAVE:
        with pytest.raises(FileError, match="must end in"):
            output_paths(str(path), 1)
        return
    rehearse([path], 20, 40, PARAMETERS)
    assert list(tmp_path.iterdir()) == [], "nothing remains, not even the folder"
    save_image(gradient(), path, PARAMETERS)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert open_image(path).size == (40, 20)


def test_an_image_stores_its_parameters_whatever_the_names(tmp_path):
    save_image(gradient(), tmp_path / "a.png", PARAMETERS)
    with Image.open(tmp_path / "a.png") as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert json.loads(image.text["deepgen"]) == PARAMETERS
        assert "caf\u00e9" in image.text["deepgen"]


def in_the_way(folder: Path) -> dict[str, tuple[str, str]]:
    """What is in the way of the second image, by its kind: the output's name, and words of the error."""
    (folder / "folder_2.png").mkdir()
    os.mkfifo(folder / "pipe_2.png")
    (folder / "device_2.png").symlink_to("/dev/null")
    (folder / "kept_2.png").write_bytes(b"kept")
    (folder / "kept_2.png").chmod(0o444)
    (folder / "file").write_bytes(b"")
    return {
        "folder": ("folder.png", r"folder_2\.png must be a file, got a folder\.$"),
        "pipe": ("pipe.png", r"pipe_2\.png must be a file, got a named pipe\.$"),
        "device": ("device.png", r"device_2\.png must be a file, got a device\.$"),
        "read-only": ("kept.png", r"kept_2\.png exists and is read-only\.$"),
        "too long": ("n" * 250 + ".png", "cannot be written: File name too long"),
        "a file as folder": ("file/a.png", "cannot be written: "),
        "proc": ("/proc/a.png", "cannot be written: "),
        "below proc": ("/proc/new/a.png", "cannot be written: "),
    }


@not_on_windows("it has no named pipes and devices among the files")
@pytest.mark.parametrize(
    "kind",
    ["folder", "pipe", "device", "read-only", "too long", "a file as folder", "proc", "below proc"],
)
def test_what_is_in_the_way_is_found_before(tmp_path, kind):
    name, words = in_the_way(tmp_path)[kind]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileError, match=rf"^--output_image .*{words}"):
        rehearse(output_paths(str(tmp_path / name), 2, "--output_image"), 64, 64, {}, "--output_image")
    assert sorted(tmp_path.iterdir()) == before


def test_sizes_that_a_format_does_not_support_are_found_before(tmp_path):
    for name, side in (("a.webp", 16400), ("a.jpg", 65504), ("a.gif", 65552)):
        for height, width in ((side, 16), (16, side)):
            with pytest.raises(FileError, match=f"{name} cannot be written: "):
                rehearse([tmp_path / name], height, width, {})
    assert list(tmp_path.iterdir()) == []


def test_the_room_for_all_images_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: (10**12, 10**12, 10 << 20))
    one = 512 * 512 * 3 + 65536
    rehearse(output_paths(str(tmp_path / "a.png"), (10 << 20) // one), 512, 512, {})
    with pytest.raises(FileError, match=r"has 10\.0 MiB free, but up to 10\.\d MiB are needed"):
        rehearse(output_paths(str(tmp_path / "a.png"), (10 << 20) // one + 1), 512, 512, {})


def test_an_old_file_outlives_the_rehearsal(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    rehearse([tmp_path / "a.png"], 8, 8, PARAMETERS)
    assert (tmp_path / "a.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def failing(monkeypatch, fails) -> None:
    """A disk that is full for the paths of which ``fails`` is true."""

    def write(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2 if fails(self) else len(content)])
        if fails(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)


def test_what_fails_at_the_end_is_saved_elsewhere(tmp_path, monkeypatch):
    folder, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(temporary))
    failing(monkeypatch, lambda path: path.suffix == ".bmp")
    place, problem = save_somewhere(gradient(), folder / "a.bmp", PARAMETERS)
    assert problem == "No space left on device" and place.parent == folder and place.suffix == ".png"
    assert open_image(place).size == (40, 20) and list(folder.iterdir()) == [place]

    failing(monkeypatch, lambda path: path.parent == folder)
    place, problem = save_somewhere(gradient(), folder / "b.png", PARAMETERS)
    assert problem is not None and place.parent == temporary and list(temporary.iterdir()) == [place]
    assert open_image(place).size == (40, 20) and len(list(folder.iterdir())) == 1

    failing(monkeypatch, lambda path: True)
    with pytest.raises(FileError, match=r"No space left on device.*the result is lost"):
        save_somewhere(gradient(), folder / "c.png", PARAMETERS)
    assert len(list(folder.iterdir())) == len(list(temporary.iterdir())) == 1


def test_a_folder_that_vanished_is_made_again(tmp_path):
    assert save_somewhere(gradient(), tmp_path / "gone" / "a.png", {}) == (tmp_path / "gone" / "a.png", None)


def test_a_real_limit_of_the_system_leaves_nothing_half_written(tmp_path):
    """The system takes the first bytes of the file and then no more, in a process of its own.

    Pillow itself would call that saved: it does not look at how many of its bytes were taken.
    """
    (tmp_path / "a.bmp").write_bytes(b"old")
    resource = pytest.importorskip("resource", reason="this system has no such limits")
    limit = 8192

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code = (
        "from pathlib import Path; from PIL import Image; from deepgen_npu.image_files import *\n"
        "paths = output_paths('a.bmp', 1); rehearse(paths, 128, 128, {})\n"
        "place, problem = save_somewhere(Image.new('RGB', (128, 128)), paths[0], {})\n"
        "print(place, problem, sep='|')"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limited,
    )
    assert child.returncode == 0, child.stderr
    place, problem = child.stdout.strip().split("|")
    assert problem == "File too large" and open_image(tmp_path / place).size == (128, 128)
    assert (tmp_path / "a.bmp").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.bmp", place])


@not_on_windows("it does not tell how long names may be")
def test_a_temporary_name_is_no_longer_than_the_name(tmp_path):
    name = "n" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 4) + ".png"
    rehearse([tmp_path / name], 8, 8, {})
    save_image(gradient(), tmp_path / name, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_opened_image_needs_no_file(tmp_path):
    """The file is closed and may be replaced: the input may be the output."""
    gradient().save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    save_image(opened.rotate(90, expand=True), tmp_path / "a.png", {})
    assert open_image(tmp_path / "a.png").size == (20, 40)
