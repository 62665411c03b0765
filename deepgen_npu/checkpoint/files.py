"""What all readers of a checkpoint's files share: one error, one way to read JSON, one way to say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import files
from ..checks import shown
from ..errors import CheckpointError
from ..hub.download import MODEL_ID


# Configs have a few kB; the published index of the VLM has 66.
MAX_CONFIG_BYTES = 1 << 20
# Values or lines of one file, so that it is read within a second. A published tokenizer.json has half a million.
MAX_VALUES = 1 << 20


def how_to_download() -> str:
    return (
        f"To download {MODEL_ID} (14 GB): python -m deepgen_npu download --to FOLDER "
        "(add --source modelscope where Hugging Face cannot be reached)."
    )


def missing(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{name} is missing in {folder}. {how_to_download()}")


def wrong(file: Path, key: str, found: object, wanted: str) -> CheckpointError:
    """The error for a value in a file: the key, what was found and what is wanted."""
    return CheckpointError(f"{file}: {key} is {shown(found)}; {wanted} is wanted. {how_to_download()}")


def printable(name: str) -> str:
    """A name from a file, for a message."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)


def read_json(folder: Path, name: str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    Raises:
        CheckpointError: When it is missing, is no regular file or no JSON object, or is too large or deep.
    """
    try:
        content = _bounded(folder / name, files.read_bytes(folder / name, max_bytes), b",")
        return files.parse_json(content, str(folder / name))
    except FileNotFoundError:
        raise missing(folder, name) from None
    except files.FileError as error:
        raise CheckpointError(f"{error} {how_to_download()}") from None


def read_text(folder: Path, name: str, max_bytes: int) -> str:
    """The UTF-8 text in a file of the folder. Raises as `read_json`."""
    try:
        return _bounded(folder / name, files.read_bytes(folder / name, max_bytes), b"\n").decode("utf-8")
    except FileNotFoundError:
        raise missing(folder, name) from None
    except (files.FileError, UnicodeDecodeError) as error:
        reason = f"{folder / name} is no UTF-8 text ({error})." if isinstance(error, UnicodeDecodeError) else error
        raise CheckpointError(f"{reason} {how_to_download()}") from None


def _bounded(file: Path, content: bytes, between: bytes) -> bytes:
    if (count := content.count(between)) > MAX_VALUES:
        raise files.FileError(f"{file} has {count} times {between.decode()!r}; at most {MAX_VALUES} are wanted.")
    return content
