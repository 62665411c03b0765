"""Picture files in and out: opened here only, and saved so that no picture is lost. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from .files import FileError, Rehearsed, as_json, kind_of, made, read_bytes, reason_of, replacing, require_room
from .rgb import to_rgb


# Pillow goes by the content, whatever the name, and has plugins that start other programs (EPS: Ghostscript). The
# decoders of these run in this process. JPEG opens MPO, too; AVIF is not in every Pillow.
READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
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
"""134 megapixels: more than medium format cameras have, and 0.5 GB as RGBA."""
MAX_FILE_BYTES = 1 << 30


def open_image(path: str | os.PathLike[str], option: str = "") -> Image.Image:
    """The picture in a file: the first of an animation or of several pages, as `to_rgb` shows it.

    Args:
        option: Of the command line, for errors: ``--input_image``.

    Raises:
        FileError: Naming the file, when it is no regular file, none of the formats in `READ`, damaged or cut off, or
            larger than `MAX_PIXELS`, which is known before anything is decoded.
    """
    where = f"{option} {path}".strip()
    try:
        content = read_bytes(Path(path), MAX_FILE_BYTES)
    except FileNotFoundError:
        raise FileError(f"{where}: there is no such file.") from None
    except FileError as error:
        raise FileError(f"{option} {error}".strip()) from None
    too_large = f"{where} has more than {MAX_PIXELS} pixels; a smaller picture is wanted."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, at damage that may not matter and at large pictures
        try:
            with Image.open(io.BytesIO(content), formats=_known(READ)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise FileError(too_large)
                image.load()
                return to_rgb(image)
        except FileError:
            raise
        except UnidentifiedImageError:
            raise FileError(
                f"{where} cannot be read as a picture: it is none of {', '.join(_known(READ))}, or damaged."
            ) from None
        except Image.DecompressionBombError:
            raise FileError(too_large) from None
        except Exception as error:  # decoders of damaged files raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise FileError(f"{where} cannot be read as a picture ({reason.rstrip('.')}).") from None


def output_paths(name: str, count: int, option: str = "") -> list[Path]:
    """Where the pictures of a run go: the name itself, or, where there are several, it with numbers from 1.

    Raises:
        FileError: When it cannot be the name of a picture.
    """
    path = Path(name).expanduser()
    if path.is_dir() or name.endswith(("/", os.sep)):
        raise FileError(f"{option} {name} is a folder; a file name is wanted.".strip())
    if WRITTEN.get(path.suffix.lower()) not in _known(WRITTEN.values(), to_write=True):
        endings = [ending for ending, kind in WRITTEN.items() if kind in _known(WRITTEN.values(), to_write=True)]
        raise FileError(f"{option} {name}: a name that ends in {', '.join(endings)} is wanted.".strip())
    return [path] if count == 1 else [path.with_stem(f"{path.stem}_{number + 1}") for number in range(count)]


def rehearse(paths: Sequence[Path], height: int, width: int, parameters: Mapping[str, Any], option: str = "") -> None:
    """Find out, before minutes are spent on the pictures, whether `save_image` can write them; nothing remains.

    Args:
        height: Of the pictures, in pixels.
        width: As height.
        parameters: As far as they are known.

    Raises:
        FileError: Naming the file or folder that is in the way, or the room that is missing.
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
    """Write a picture whole or not at all: an interrupted run leaves the old file or the new one.

    Args:
        parameters: Of the run, for a PNG's text ``deepgen``. Names that are not UTF-8 are escaped there.

    Raises:
        Exception: Whatever the system and the encoder raise.
    """
    with made(path.parent), replacing(path) as unfinished:
        _write(image, unfinished, parameters)


def save_somewhere(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> tuple[Path, str | None]:
    """`save_image`, or else a PNG of a new name in the same folder or in the folder for temporary files.

    Returns:
        Where the picture is, and why it is not at ``path``; None when it is.

    Raises:
        FileError: When it could not be written anywhere.
    """
    try:
        save_image(image, path, parameters)
        return path, None
    except Exception as error:
        reason = reason_of(error)
    for folder in (lambda: path.parent, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(Exception):
            place = folder() / f"deepgen_{secrets.token_hex(4)}.png"
            save_image(image, place, parameters)
            return place, reason
    raise FileError(f"{path} cannot be written ({reason}), nor can {tempfile.gettempdir()}: the picture is lost.")


def _write(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    options = {}
    kind = WRITTEN[path.suffix.lower()]
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("deepgen", as_json(parameters))
        options["pnginfo"] = text
    # Pillow's own writing takes a disk that takes only the begin of the last bytes for one that took them all.
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    path.write_bytes(encoded.getbuffer())


def _try_name(path: Path, option: str) -> None:
    """Refuse what must not be replaced; make and remove what is not there, since only that shows that it can be."""
    where = f"{option} {path}".strip()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            path.unlink()
        return
    if not stat.S_ISREG(mode):
        raise FileError(f"{where} is {kind_of(mode)}; the name of a file is wanted.")
    if not mode & 0o222:
        raise FileError(f"{where} is there already and may not be written to.")
    os.close(os.open(path, os.O_WRONLY))


def _known(formats: Any, to_write: bool = False) -> list[str]:
    """Those of the formats that this Pillow has."""
    Image.init()
    registered = Image.SAVE if to_write else Image.OPEN
    return [kind for kind in dict.fromkeys(formats) if kind in registered]
