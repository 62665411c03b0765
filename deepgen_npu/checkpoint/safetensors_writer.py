"""Writing a safetensors file tensor by tensor: the library's own writer wants all of them in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..dtypes import ITEM_BYTES


Bytes = bytes | bytearray | memoryview
Shape = tuple[int, ...]


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, Shape]],
    data: Iterable[tuple[str, Iterable[Bytes]]],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a file whose tensors are made one after the other.

    Args:
        path: Where; an existing file is overwritten.
        tensors: The safetensors name of the dtype, and the shape, by name.
        data: Each name with the tensor's bytes in pieces, in any order.
        metadata: Strings beside the tensors.

    Returns:
        Bytes of all tensors.

    Raises:
        ValueError: When a tensor is missing, or has more or fewer bytes than its shape says.
        OSError: When the file cannot be written.
    """
    # The widest first, as safetensors does: each then begins at a multiple of its item.
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ranges: dict[str, tuple[int, int]] = {}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        ranges[name] = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        end = ranges[name][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(ranges[name])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        start = file.write(struct.pack("<Q", len(text)) + text)
        for name, pieces in data:
            begin, stop = ranges.pop(name)
            file.seek(start + begin)
            written = sum(file.write(piece) for piece in pieces)
            if written != stop - begin:
                raise ValueError(f"{name} has {written} bytes, but {stop - begin} by its shape.")
    if ranges:
        raise ValueError(f"There are no bytes for {', '.join(sorted(ranges))}.")
    return end
