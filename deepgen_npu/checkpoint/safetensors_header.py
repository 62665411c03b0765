"""The header of a safetensors file, judged as strictly as the safetensors library does."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..checks import shown
from ..dtypes import ITEM_BYTES
from ..errors import CheckpointError
from .files import how_to_download


# The format allows 100 MB, which take Python many seconds and gigabytes. The published headers have at most 0.1 MB.
MAX_HEADER_BYTES = 1 << 20

_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``nbytes`` bytes at ``offset`` in ``file``; ``dtype`` is the safetensors name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes, shapes and places of the tensors in a safetensors file.

    The file format: 8 bytes (little-endian header length), the header as JSON, the data. The tensors' ranges cover
    the data without gap or overlap.

    Raises:
        FileNotFoundError: When there is nothing of that name.
        CheckpointError: When the file is no regular file, is cut off, is a Git LFS pointer, is no safetensors file or
            describes its data wrongly.
    """
    try:
        size, start, header = _read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except files.FileError as error:
        raise CheckpointError(str(error)) from None
    try:
        return _tensors(path, header, len(start) + len(header), size)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} has a damaged safetensors header ({error}). {how_to_download()}") from None


def _read(path: Path) -> tuple[int, bytes, bytes]:
    """The file's size, its first 8 bytes and the header."""
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start == b"version ":
            raise CheckpointError(
                f"{path} is a Git LFS pointer of {size} bytes, not the weights: "
                "run `git lfs pull` in the folder. " + how_to_download()
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise CheckpointError(f"{path} ({size} bytes) is cut off or is no safetensors file. {how_to_download()}")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} announces a header of {length} bytes; at most {MAX_HEADER_BYTES} are wanted. "
                + how_to_download()
            )
        header = file.read(length)
    if len(header) != length:
        raise CheckpointError(f"{path} became shorter while it was read. {how_to_download()}")
    return size, start, header


def _tensors(path: Path, header: bytes, data_starts: int, size: int) -> dict[str, StoredTensor]:
    if not header.startswith(b"{"):
        raise ValueError("it does not begin with '{'")
    # Python takes it for 0, safetensors for a fraction.
    if re.search(rb"[\s,:\[]-0\b", header):
        raise ValueError("it holds the number -0")
    entries = files.parse_json(header, "the header")
    _check_metadata(entries.pop("__metadata__", {}))
    if not entries:
        raise ValueError("it names no tensor")
    tensors = {name: _tensor(path, name, entry, data_starts) for name, entry in entries.items()}
    end = data_starts
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            kind = "leaves a gap before" if tensor.offset > end else "overlaps with what is before"
            raise ValueError(f"the range of {shown(name)} {kind} it")
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(
            f"{path} has {size} bytes where its header announces {end}: the download is not complete. "
            + how_to_download()
        )
    return tensors


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"__metadata__ is {shown(metadata)}; an object of strings is wanted")
    for text in (*metadata.keys(), *metadata.values()):
        text.encode()


def _tensor(path: Path, name: str, entry: Any, data_starts: int) -> StoredTensor:
    name.encode()  # half a surrogate pair is no name
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise ValueError(f"{shown(name)} is {shown(entry)}; an object of {', '.join(keys)} is wanted")
    dtype, shape, offsets = (entry[key] for key in keys)

    def wrong(key: str, wanted: str) -> ValueError:
        return ValueError(f"{key} of {shown(name)} is {shown(entry[key])}; {wanted} is wanted")

    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise wrong("dtype", f"one of {', '.join(ITEM_BYTES)}")
    if not _are_sizes(shape):
        raise wrong("shape", "a list of whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets", "[begin, end]")
    nbytes = ITEM_BYTES[dtype]
    for side in shape:
        nbytes *= side
        if nbytes > _LARGEST:
            raise wrong("shape", "what can be in a file")
    begin, end = offsets
    if end - begin != nbytes:
        raise wrong("data_offsets", f"a range of {nbytes} bytes, for {dtype} of the shape {shown(shape)},")
    return StoredTensor(path, dtype, tuple(shape), data_starts + begin, nbytes)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one <= _LARGEST for one in value)
