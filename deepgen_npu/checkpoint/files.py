"""What all readers of a checkpoint's files share: how JSON and text are read, and the errors about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import files
from ..checks import must, must_be, shown
from ..errors import CheckpointError
from ..formatting import command
from ..hub.download import DOWNLOAD_SIZE, MODEL_ID


MAX_CONFIG_BYTES = 1 << 20
"""Configs have a few KiB; the published index of the VLM has 65."""

MAX_VALUES = 1 << 20
"""Values or lines of one file, so that it is read within a second. A published tokenizer.json has half a million."""

_DOWNLOAD = (
    f"{command('python -m deepgen_npu download')}"
    "Add --to FOLDER to download into that folder, --source modelscope where Hugging Face cannot be reached."
)


def how_to_download() -> str:
    """Advice for an error where there is no model: the command that downloads it."""
    return f"To download {MODEL_ID}, {DOWNLOAD_SIZE}:{_DOWNLOAD}"


def download_again() -> str:
    """Advice for an error about a damaged folder: the command that completes a download."""
    return f"Run the download again:{_DOWNLOAD}"


def missing(folder: Path, name: str, note: str = "") -> CheckpointError:
    """The error for a file that is not there.

    Args:
        folder: The checkpoint.
        name: Of the file, relative to the folder.
        note: Words after its path.
    """
    return CheckpointError(f"{folder / name}{note} is missing. {download_again()}")


def damaged(what: str) -> CheckpointError:
    """The error for a folder of which a download, run again, replaces what is wrong; ``what`` is a sentence."""
    return CheckpointError(f"{what} {download_again()}")


def wrong(file: Path, key: str, found: object, requirement: str) -> CheckpointError:
    """The error for a value in a file: ``FILE: KEY must be REQUIREMENT, got FOUND.`` and how to download."""
    return CheckpointError(f"{file}: {must_be(key, requirement, found, advice=download_again())}")


def printable(name: str) -> str:
    """A name from a file, for a message."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)


def read_json(folder: Path, name: str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    Args:
        folder: The checkpoint.
        name: Of the file, relative to the folder.
        max_bytes: A larger file is refused.

    Raises:
        CheckpointError: When it is missing, is not a regular file, is not a JSON object, or is too large or deep.
    """
    try:
        content = _bounded(folder / name, files.read_bytes(folder / name, max_bytes), b",")
        return files.parse_json(content, str(folder / name))
    except FileNotFoundError:
        raise missing(folder, name) from None
    except files.FileError as error:
        raise damaged(str(error)) from None


def read_text(folder: Path, name: str, max_bytes: int) -> str:
    """The UTF-8 text in a file of the folder. Raises as `read_json`."""
    try:
        return _bounded(folder / name, files.read_bytes(folder / name, max_bytes), b"\n").decode("utf-8")
    except FileNotFoundError:
        raise missing(folder, name) from None
    except (files.FileError, UnicodeDecodeError) as error:
        reason = f"{folder / name} is not UTF-8 text ({error})." if isinstance(error, UnicodeDecodeError) else error
        raise damaged(str(reason)) from None


def _bounded(file: Path, content: bytes, between: bytes) -> bytes:
    if (count := content.count(between)) > MAX_VALUES:
        raise files.FileError(must(str(file), f"have at most {MAX_VALUES} times {between.decode()!r}", count))
    return content
