"""Image files in and out: opened here only, and saved so that no image is lost. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from . import files
from .checks import Named, must, must_be
from .files import FileError, Rehearsed, as_json, kind_of, made, read_bytes, reason_of, replacing, require_room
from .formatting import format_size
from .rgb import to_mask, to_rgb, upright_size


READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""The formats that are opened. Pillow goes by the content, whatever the name, and has plugins that start other
programs (EPS: Ghostscript); the decoders of these run in this process. JPEG includes MPO; AVIF is not in every
Pillow."""

WRITTEN = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".avif": "AVIF",
}
"""The formats of output names by their endings, which may be of either case."""

MAX_PIXELS = 1 << 27
"""134 megapixels: more than medium format cameras have, and 512 MiB as RGBA."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are not read."""


def open_mask(path: str | os.PathLike[str], option: str = "") -> Image.Image:
    """The mask in a file, as `to_mask` returns it; the rest as `open_image`."""
    return open_image(path, option, to_mask)


def open_image(
    path: str | os.PathLike[str], option: str = "", convert: Callable[[Image.Image], Image.Image] = to_rgb
) -> Image.Image:
    """The image in a file: the first of an animation or of several pages, as `to_rgb` returns it.

    Args:
        path: Of the file.
        option: Of the command line, for errors: ``--input_image``.
        convert: What to make of the image.

    Raises:
        FileError: Naming the file, when it is not a regular file, not of a format in `READ`, damaged or cut off, or
            larger than `MAX_PIXELS`, which its header shows before anything is decoded.
    """
    where = f"{option} {path}".strip()
    try:
        content = read_bytes(Path(path), MAX_FILE_BYTES)
    except FileNotFoundError:
        raise FileError(f"{where} does not exist.") from None
    except FileError as error:
        raise FileError(f"{option} {error}".strip()) from None

    with _decoding(where):
        try:
            with Image.open(io.BytesIO(content), formats=_known(READ)) as image:
                _require_few_pixels(where, *image.size)
                image.load()
                return convert(image)
        except UnidentifiedImageError:
            raise FileError(
                f"{where} cannot be read as an image: it is not {', '.join(_known(READ))}, or it is damaged."
            ) from None


@contextlib.contextmanager
def _decoding(where: str) -> Iterator[None]:
    """A block in which Pillow warns of nothing (harmless damage, large images) and its errors are in words.

    Args:
        where: The file, for errors.

    Raises:
        FileError: For whatever goes wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except FileError:
            raise
        except FileNotFoundError:
            raise FileError(f"{where} does not exist.") from None
        except Image.DecompressionBombError:
            raise _too_large(where, "more") from None
        except Exception as error:  # decoders of damaged files raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise FileError(f"{where} cannot be read as an image ({reason.rstrip('.')}).") from None


def _require_few_pixels(where: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(where, format_size(width, height))


def _too_large(where: str, found: str) -> FileError:
    return FileError(must(where, f"have at most {MAX_PIXELS} pixels", Named(found)))


class Size(NamedTuple):
    """Of an image, in pixels."""

    width: int
    height: int


def read_size(path: Path) -> Size:
    """The size of the image in a file as `open_image` would return it, by its header.

    Raises:
        FileError: As `open_image`, but for damage behind the header, which is not noticed.
    """
    with (
        _decoding(str(path)),
        files.open_regular(path) as file,
        Image.open(file, formats=_known(READ)) as image,
    ):
        # Pillow turns TIFF when it loads it.
        if image.format == "TIFF" or (image.format == "PNG" and _has_text_behind_pixels(file)):
            image.load()
        size = Size(*upright_size(image))
        _require_few_pixels(str(path), *size)
        return size


_MOST_CHUNKS = 1 << 16
"""A PNG with more parts is simply decoded."""


def _has_text_behind_pixels(file: Any) -> bool:
    """Whether a PNG may say behind its pixels how it is turned: decoding it takes a hundred times as long as this."""
    place = file.tell()
    file.seek(8)
    behind = False
    try:
        for _ in range(_MOST_CHUNKS):
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind == b"IEND":
                return False
            if behind and kind != b"IDAT":
                return True
            behind = kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
        return True
    except struct.error:  # it is cut off
        return False
    finally:
        file.seek(place)


def read_parameters(path: Path) -> dict[str, Any] | None:
    """What the text ``deepgen`` of a PNG says; empty of a PNG without one, None of what is damaged or no PNG.

    Raises:
        FileNotFoundError: When there is nothing of that name.
    """
    try:
        with warnings.catch_warnings(), files.open_regular(path) as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=["PNG"]) as image:
                image.load()  # texts may come behind the pixels
                found = json.loads(getattr(image, "text", {}).get("deepgen", "{}"))
    except FileNotFoundError:
        raise
    except Exception:  # of a foreign or a damaged file, anything
        return None
    return found if isinstance(found, dict) else {}


def output_paths(name: str, count: int, option: str = "") -> list[Path]:
    """Where the images of a run go: the name itself, or, where there are several, the name with numbers from 1.

    Raises:
        FileError: When it cannot be the name of an image.
    """
    path = Path(name).expanduser()
    if path.is_dir() or name.endswith(("/", os.sep)):
        raise FileError(must_be(option or "the file name", "a file name, not a folder", name))
    if WRITTEN.get(path.suffix.lower()) not in _known(WRITTEN.values(), to_write=True):
        endings = [ending for ending, kind in WRITTEN.items() if kind in _known(WRITTEN.values(), to_write=True)]
        raise FileError(must(option or "the file name", f"end in {', '.join(endings)}", name))
    return [path] if count == 1 else [path.with_stem(f"{path.stem}_{number + 1}") for number in range(count)]


def rehearse(paths: Sequence[Path], height: int, width: int, parameters: Mapping[str, Any], option: str = "") -> None:
    """Find out, before minutes are spent on the images, whether `save_image` can write them; nothing remains.

    Args:
        paths: Of the images, all in one folder.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        parameters: As far as they are known.
        option: Of the command line, for errors.

    Raises:
        FileError: Naming the file or folder that is in the way, or the space that is missing.
    """
    folder = path = paths[0].parent
    try:
        with made(folder):
            require_room(folder, len(paths) * (height * width * 3 + 65536), option)
            for path in paths:
                _try_name(path, option)
            # Formats limit the sides (WEBP: 16383), not the area.
            for size in ((width, 1), (1, height)):
                with contextlib.suppress(Rehearsed), replacing(path) as unfinished:
                    _write(Image.new("RGB", size), unfinished, parameters)
                    raise Rehearsed
    except FileError:
        raise
    except Exception as error:  # encoders raise anything
        raise FileError(f"{option} {path} cannot be written: {reason_of(error)}.".strip()) from None


def save_image(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """Write an image atomically: an interrupted run leaves the old file or the new one.

    Args:
        image: As RGB.
        path: Its ending determines the format.
        parameters: Of the run, for a PNG's text ``deepgen``. Names that are not UTF-8 are escaped there.

    Raises:
        Exception: Whatever the system and the encoder raise.
    """
    with made(path.parent), replacing(path) as unfinished:
        _write(image, unfinished, parameters)


def save_somewhere(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> tuple[Path, str | None]:
    """`save_image`, or else a PNG of a new name in the same folder or in the folder for temporary files.

    Returns:
        Where the image is, and why it is not at ``path``; None when it is.

    Raises:
        FileError: When it could not be written anywhere.
    """
    return files.save_somewhere(lambda place: save_image(image, place, parameters), path, ".png")


def _write(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    path.write_bytes(encoded(image, WRITTEN[path.suffix.lower()], parameters))


def encoded(image: Image.Image, kind: str, parameters: Mapping[str, Any]) -> memoryview:
    """The bytes of an image file.

    Args:
        image: As RGB.
        kind: Format, one of the values of `WRITTEN`.
        parameters: Of the run, for a PNG's text ``deepgen``.
    """
    options = {}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("deepgen", as_json(parameters))
        options["pnginfo"] = text
    # Pillow itself does not notice a disk that accepts only a part of the last bytes.
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getbuffer()


def _try_name(path: Path, option: str) -> None:
    """Refuse what must not be replaced; make and remove a file that does not exist, to see that it can be made."""
    where = f"{option} {path}".strip()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            path.unlink()
        return
    if not stat.S_ISREG(mode):
        raise FileError(must_be(where, "a file", Named(kind_of(mode))))
    if not mode & 0o222:
        raise FileError(f"{where} exists and is read-only.")
    os.close(os.open(path, os.O_WRONLY))


def _known(formats: Any, to_write: bool = False) -> list[str]:
    """The formats among the given ones that this Pillow has."""
    Image.init()
    registered = Image.SAVE if to_write else Image.OPEN
    return [kind for kind in dict.fromkeys(formats) if kind in registered]
