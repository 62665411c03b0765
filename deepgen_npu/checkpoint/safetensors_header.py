"""The header of a safetensors file, checked as strictly as the safetensors library does."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..checks import must_be, shown
from ..dtypes import ITEM_BYTES
from ..errors import CheckpointError
from ..formatting import command
from .files import download_again


MAX_HEADER_BYTES = 1 << 20
"""The format allows 100 MB, which take Python many seconds and gigabytes. Published headers have at most 0.1 MB."""

_LARGEST = 2**63 - 1

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``nbytes`` bytes at ``offset`` in ``file``; ``dtype`` is the safetensors name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """The header of a file: its tensors by name, and the strings that a program kept beside them."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes, shapes and places of the tensors in a file of a checkpoint. Raises as `read_safetensors`."""
    return read_safetensors(path).tensors


def read_safetensors(
    path: Path,
    max_header: int = MAX_HEADER_BYTES,
    advice: str | None = None,
    item_bytes: Mapping[str, int] = ITEM_BYTES,
) -> SafetensorsFile:
    """The header of a safetensors file.

    The file format: 8 bytes (little-endian header length), the header as JSON, the data. The tensors' ranges cover
    the data without gap or overlap.

    Args:
        path: The file.
        max_header: Bytes of the longest header that is read.
        advice: What to do about a damaged file; None is to download the checkpoint again.
        item_bytes: The dtypes that tensors may have, and the bytes of one element of each.

    Raises:
        FileNotFoundError: When there is nothing of that name.
        CheckpointError: When the file is not a regular file, is cut off, is a Git LFS pointer, is not a safetensors
            file or describes its data wrongly.
    """

    def refusal(damaged: _Damaged) -> CheckpointError:
        what_to_do = f"{download_again() if advice is None else advice} {damaged.advice}".rstrip()
        return CheckpointError(f"{damaged} {what_to_do}")

    try:
        size, start, header = _read(path, max_header)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except files.FileError as error:
        raise CheckpointError(str(error)) from None
    except _Damaged as error:
        raise refusal(error) from None
    try:
        return _parsed(path, header, len(start) + len(header), size, item_bytes)
    except _Damaged as error:
        raise refusal(error) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path} has a damaged safetensors header ({str(error).rstrip('.')})."
        raise refusal(_Damaged(what)) from None


class _Damaged(Exception):
    """What is damaged, in a sentence, and what else can be done about it, perhaps."""

    def __init__(self, what: str, advice: str = ""):
        super().__init__(what)
        self.advice = advice


def _read(path: Path, max_header: int) -> tuple[int, bytes, bytes]:
    """The file's size, its first 8 bytes and the header."""
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start == b"version ":
            lfs = f"In a git clone, run in that folder instead:{command('git lfs pull')}".rstrip()
            raise _Damaged(f"{path} is a Git LFS pointer of {size} bytes, not the weights.", lfs)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise _Damaged(f"{path} ({size} bytes) is cut off or is not a safetensors file.")
        if length > max_header:
            raise _Damaged(f"{path}: {must_be('the length of the header', f'at most {max_header} bytes', length)}")
        header = file.read(length)
    if len(header) != length:
        raise _Damaged(f"{path} became shorter while it was read.")
    return size, start, header


def _parsed(path: Path, header: bytes, data_starts: int, size: int, item_bytes: Mapping[str, int]) -> SafetensorsFile:
    if not header.startswith(b"{"):
        raise ValueError("it does not begin with '{'")
    # Python takes it for 0, safetensors for a fraction.
    if re.search(rb"[\s,:\[]-0\b", _STRING.sub(b'""', header)):
        raise ValueError("it contains the number -0")
    entries = files.parse_json(header, "the header")
    metadata = entries.pop("__metadata__", {})
    _check_metadata(metadata)
    if not entries:
        raise ValueError("it lists no tensor")
    tensors = {name: _tensor(path, name, entry, data_starts, item_bytes) for name, entry in entries.items()}
    end = data_starts
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            kind = "leaves a gap before" if tensor.offset > end else "overlaps with what is before"
            raise ValueError(f"the range of {shown(name)} {kind} it")
        end += tensor.nbytes
    if end != size:
        raise _Damaged(f"{path} has {size} bytes, but {end} by its header: the download is not complete.")
    return SafetensorsFile(tensors, metadata)


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(must_be("__metadata__", "an object of strings", metadata))
    for text in (*metadata.keys(), *metadata.values()):
        text.encode()


def _tensor(path: Path, name: str, entry: Any, data_starts: int, item_bytes: Mapping[str, int]) -> StoredTensor:
    name.encode()  # half a surrogate pair is not a name
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise ValueError(must_be(shown(name), f"an object of {', '.join(keys)}", entry))
    dtype, shape, offsets = (entry[key] for key in keys)

    def wrong(key: str, requirement: str) -> ValueError:
        return ValueError(must_be(f"{key} of {shown(name)}", requirement, entry[key]))

    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise wrong("dtype", f"one of {', '.join(item_bytes)}")
    if not _are_sizes(shape):
        raise wrong("shape", "a list of integers from 0")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets", "[begin, end]")
    nbytes = item_bytes[dtype]
    for side in shape:
        nbytes *= side
        if nbytes > _LARGEST:
            raise wrong("shape", "one that fits a file")
    begin, end = offsets
    if end - begin != nbytes:
        raise wrong("data_offsets", f"a range of {nbytes} bytes, for {dtype} of the shape {shown(shape)}")
    return StoredTensor(path, dtype, tuple(shape), data_starts + begin, nbytes)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one <= _LARGEST for one in value)
