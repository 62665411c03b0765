"""Tensors out of files: mapped, or read in pieces of `_CHUNK_BYTES` straight to where they will be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO

import torch
from torch import Tensor

from ..devices import can_cast_from
from ..dtypes import ANY_ITEM_BYTES, stored_dtype
from ..errors import CheckpointError
from ..files import FileError, open_regular
from .mapping import MappedFiles
from .safetensors_header import StoredTensor
from .staging import Staging


_CHUNK_BYTES = 32 * 1024 * 1024
"""Size of the pieces in which weights are read and converted."""

_LARGEST_ITEM = max(ANY_ITEM_BYTES.values())

BytesRead = Callable[[int], object]
"""Called with the number of bytes of each piece that was read."""


class Means:
    """What the tensors of a part are read with: one mapping for each file, one set of buffers.

    Args:
        disable_mmap: Whether nothing is mapped.
        largest: Bytes of the largest tensor: buffers are not larger than it.
    """

    def __init__(self, disable_mmap: bool = False, largest: int = _CHUNK_BYTES):
        # Buffers hold whole elements of any dtype.
        self.nbytes = min(_CHUNK_BYTES, -(-largest // _LARGEST_ITEM) * _LARGEST_ITEM)
        self._files = None if disable_mmap else MappedFiles()
        self._buffer: Tensor | None = None
        self._staging: dict[torch.device, Staging | None] = {}
        self._open = ExitStack()

    def mapped(self, stored: StoredTensor) -> Tensor | None:
        """A tensor as a view of its file; None where it has to be read."""
        if self._files is None:
            return None
        if not self._files.knows(stored.file):
            with _opened(stored) as file:
                self._files.add(stored.file, file.fileno())
        return self._files.view(stored)

    def staging(self, device: torch.device, dtype: torch.dtype, wanted: torch.dtype) -> Staging | None:
        """Buffers that the device copies from by itself; None where it has none, or does not know the stored dtype."""
        if dtype != wanted and not can_cast_from(device, dtype):
            return None
        if device not in self._staging:
            made = Staging.to(device, self.nbytes)
            self._staging[device] = None if made is None else self._open.enter_context(made)
        return self._staging[device]

    def buffer(self) -> Tensor:
        """Bytes to read into where dtype or device change on the way.

        One for all: the allocator would leave a hole between two weights for each one freed.
        """
        if self._buffer is None:
            self._buffer = torch.empty(self.nbytes, dtype=torch.uint8)
        return self._buffer

    def __enter__(self) -> Means:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def read_tensor(
    stored: StoredTensor,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_bytes_read: BytesRead | None = None,
    means: Means | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """One tensor of a file.

    Args:
        stored: Where it lies.
        dtype: None keeps the stored one.
        device: Where it is read to. Copies to it have ended when the block of ``means`` ends.
        on_bytes_read: Called with the number of bytes of each piece that was read.
        means: What it is read with. None reads it into memory of its own.
        target: What is filled and returned, of that dtype on that device. None makes it.

    Raises:
        CheckpointError: When the file cannot be read any more, or has become shorter.
    """
    if means is None:
        with Means(True, stored.nbytes) as own:
            return read_tensor(stored, dtype, device, on_bytes_read, own, target)
    source, where = stored_dtype(stored.dtype), torch.device(device)
    wanted = dtype or source
    as_stored = wanted == source and where.type == "cpu"
    # Never where it is cast: mapped pages count as resident until the file is closed.
    if as_stored and target is None and (view := means.mapped(stored)) is not None:
        if on_bytes_read is not None:
            on_bytes_read(stored.nbytes)
        return view
    found = torch.empty(stored.shape, dtype=wanted, device=where) if target is None else target
    flat = found.view(-1)
    staging = None if where.type == "cpu" else means.staging(where, source, wanted)
    step = max(1, means.nbytes // source.itemsize)
    with _opened(stored) as file:
        for start in range(0, found.numel(), step):
            piece = flat[start : start + step]
            if as_stored:
                _read_into(file, piece, stored)
            elif staging is not None:
                read = staging.free(source)[: piece.numel()]
                _read_into(file, read, stored)
                staging.send(read, piece)
            else:
                read = means.buffer().view(source)[: piece.numel()]
                _read_into(file, read, stored)
                piece.copy_(read)
            if on_bytes_read is not None:
                on_bytes_read(piece.numel() * source.itemsize)
    return found


def read_bytes(stored: StoredTensor, on_bytes_read: BytesRead | None = None) -> Iterator[memoryview]:
    """The bytes of one tensor as they are stored, in pieces that are overwritten by the next.

    Args:
        stored: Where it lies.
        on_bytes_read: Called with the number of bytes of each piece that was read.
    """
    buffer = torch.empty(min(_CHUNK_BYTES, stored.nbytes), dtype=torch.uint8)
    with _opened(stored) as file:
        for start in range(0, stored.nbytes, _CHUNK_BYTES):
            piece = buffer[: stored.nbytes - start]
            _read_into(file, piece, stored)
            yield memoryview(piece.numpy())
            if on_bytes_read is not None:
                on_bytes_read(len(piece))


@contextmanager
def _opened(stored: StoredTensor) -> Iterator[FileIO]:
    """The file of a tensor, at its first byte."""
    try:
        file = open_regular(stored.file, buffering=0)
    except (OSError, FileError) as error:
        raise _gone(stored, error) from None
    with file:
        file.seek(stored.offset)
        yield file


def _read_into(file: FileIO, target: Tensor, stored: StoredTensor) -> None:
    view = memoryview(target.view(torch.uint8).numpy())
    while len(view):
        try:
            count = file.readinto(view)
        except OSError as error:
            raise _gone(stored, error) from None
        if not count:
            raise CheckpointError(f"{stored.file} is shorter than its header says. Was it modified while loading?")
        view = view[count:]


def _gone(stored: StoredTensor, error: OSError | FileError) -> CheckpointError:
    return CheckpointError(
        f"{stored.file} can no longer be read ({getattr(error, 'strerror', None) or error}). "
        "Was it moved, replaced or removed while loading?"
    )
