"""``python -m deepgen_npu quantize``: a checkpoint folder whose layers are quantised, in the published layout."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import PARTS, Checkpoint
from ..checkpoint.quantized import by_stored_names
from ..checkpoint.reading import BytesRead, read_bytes, read_tensor
from ..checkpoint.safetensors_header import StoredTensor, read_safetensors
from ..checkpoint.safetensors_writer import write_safetensors
from ..checkpoint.structure import model_name
from ..errors import UsageError
from ..files import new_folder, require_room
from ..formatting import format_bytes
from ..quantization import layers as quantized_layers
from ..quantization.formats import FP8, MARK, SCALE, STORED, LayerFormat
from ..quantization.layers import summarise
from ..quantization.values import rotated, rounded


DtypeAndShape = tuple[str, tuple[int, ...]]
"""Of a stored tensor; the dtype by its safetensors name."""

FOLDERS = (*PARTS, "scheduler", "tokenizer")
"""Of a checkpoint, with everything in them."""


@dataclass
class Error:
    """The relative error of weights: the length of the difference over that of the weights."""

    difference: float = 0.0
    length: float = 0.0

    def add(self, weight: Tensor, stored: Tensor, scale: Tensor) -> None:
        """Count another weight: in float32, and what became of it."""
        self.length += float(torch.linalg.vector_norm(weight) ** 2)
        self.difference += float(torch.linalg.vector_norm(stored.float().mul_(scale).sub_(weight)) ** 2)

    @property
    def relative(self) -> float:
        """The square root of the quotient; 0 if nothing was counted."""
        return math.sqrt(self.difference / self.length) if self.length else 0.0


@dataclass
class QuantizedPart:
    """What became of a part.

    Attributes:
        layers: The format of each quantised layer, by the name of its module.
        left: Names of the other layers by the reason for which they stay.
        before: Bytes of its files.
        after: The same, of the new files.
        error: Of the quantised weights.
    """

    layers: dict[str, LayerFormat]
    left: dict[str, list[str]]
    before: int
    after: int = 0
    error: Error = field(default_factory=Error)


def quantize(
    checkpoint: Checkpoint, target: Path, plans: Mapping[str, QuantizedPart], on_bytes_read: BytesRead | None = None
) -> None:
    """Write the folder of a checkpoint again with quantised layers.

    One layer at a time is in memory. The folder appears when all of it is written and checked.

    Args:
        checkpoint: The source; nothing in it is changed.
        target: A new or empty folder.
        plans: What `plan` returned; sizes and errors are written to it. Other parts are copied.
        on_bytes_read: Called with the number of bytes of each piece that was read.

    Raises:
        FileError: When the target exists or its disk is too full.
    """
    with new_folder(target) as unfinished:
        require_room(unfinished, checkpoint.nbytes(), "TARGET")  # more than it will be
        sizes = _bytes_by_file(checkpoint)
        for path in sorted(_files_to_copy(checkpoint, plans, sizes)):
            new = unfinished / path.relative_to(checkpoint.folder)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)
            if on_bytes_read is not None and path in sizes:
                on_bytes_read(sizes[path])
        for part, planned in plans.items():
            _write_part(checkpoint, part, planned, unfinished / part, on_bytes_read)
        written = Checkpoint.open(unfinished)
        for part, planned in plans.items():
            planned.after = written.nbytes(part)


def plan(checkpoint: Checkpoint, title: str, parts: Sequence[str]) -> dict[str, QuantizedPart]:
    """Which layers of each part are quantised; nothing is read.

    Raises:
        UsageError: When the source is quantised already.
    """
    made = {}
    for part in parts:
        if done := checkpoint.quantized.get(part):
            title_of_it = next(iter(done.values())).title
            raise UsageError(
                f"The {part} of {checkpoint.folder} is quantised already ({title_of_it}): quantise the published "
                "weights instead, or leave it out with --part."
            )
        shapes = {model_name(part, name): tensor.shape for name, tensor in checkpoint.tensors[part].items()}
        made[part] = QuantizedPart(*quantized_layers.plan(part, title, shapes), checkpoint.nbytes(part))
    return made


def as_text(plans: Mapping[str, QuantizedPart]) -> str:
    """For the terminal: sizes and errors of the parts, and what was left as it is."""
    lines = ["| part | layers | before | after | relative error |", "|---|---|---|---|---|"]
    for part, done in plans.items():
        size = f"{format_bytes(done.before)} | {format_bytes(done.after)}"
        lines.append(f"| {part} | {len(done.layers)} | {size} | {100 * done.error.relative:.2f} % |")
    lines += ["", "Left as they are:"]
    for part, done in plans.items():
        lines += [f"- {part}: {reason}: {summarise(names)}" for reason, names in done.left.items()]
    return "\n".join(lines)


def _bytes_by_file(checkpoint: Checkpoint) -> Counter[Path]:
    """Bytes of the tensors in each file of weights."""
    sizes: Counter[Path] = Counter()
    for part in PARTS:
        for tensor in checkpoint.tensors[part].values():
            sizes[tensor.file] += tensor.nbytes
    return sizes


def _files_to_copy(checkpoint: Checkpoint, parts: Collection[str], weights: Collection[Path]) -> Iterator[Path]:
    """All files but the weights of the parts; of the folder itself, only what belongs to a checkpoint."""
    for path in checkpoint.folder.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.suffix in (".json", ".md", ".py", ".txt", ""):
            yield path
    for name in FOLDERS:
        for path in (checkpoint.folder / name).rglob("*"):
            hidden = any(step.startswith(".") for step in path.relative_to(checkpoint.folder).parts)
            if hidden or not path.is_file():
                continue
            if path.suffix in (".safetensors", ".bin", ".pt", ".pth") and path not in weights:
                continue
            if name in parts and (path in weights or path.name.endswith(".safetensors.index.json")):
                continue
            yield path


def _write_part(
    checkpoint: Checkpoint, part: str, planned: QuantizedPart, folder: Path, on_bytes_read: BytesRead | None
) -> None:
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    for name, tensor in checkpoint.tensors[part].items():
        by_file.setdefault(tensor.file, {})[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for path, stored in by_file.items():
        layers = by_stored_names(part, stored, planned.layers)
        tensors = described({name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}, layers)
        data = _data(stored, layers, planned.error, on_bytes_read)
        total += write_safetensors(folder / path.name, tensors, data, read_safetensors(path).metadata)
        weight_map |= dict.fromkeys(tensors, path.name)
    for index in (checkpoint.folder / part).glob("*.safetensors.index.json"):
        content: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / index.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def described(tensors: Mapping[str, DtypeAndShape], layers: Mapping[str, LayerFormat]) -> dict[str, DtypeAndShape]:
    """Dtypes and shapes of the tensors of a file when some of its layers are quantised."""
    made = dict(tensors)
    for module, layer in layers.items():
        _, shape = tensors[f"{module}.weight"]
        made[f"{module}.weight"] = STORED[layer.name], shape
        made[f"{module}.{SCALE}"] = "F32", () if layer.name == FP8 else (shape[0], 1)
        made[f"{module}.{MARK}"] = "U8", (len(layer.mark()),)
    return made


def pieces_of(
    module: str, weight: Tensor, layer: LayerFormat, error: Error
) -> Iterator[tuple[str, Sequence[memoryview | bytes]]]:
    """What is written of a quantised layer, by name."""
    prepared = rotated(weight, layer)
    stored, scale = rounded(prepared, layer)
    error.add(prepared, stored, scale)
    yield f"{module}.weight", [bytes_of(stored)]
    yield f"{module}.{SCALE}", [bytes_of(scale)]
    yield f"{module}.{MARK}", [layer.mark()]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _data(
    stored: Mapping[str, StoredTensor],
    layers: Mapping[str, LayerFormat],
    error: Error,
    on_bytes_read: BytesRead | None,
) -> Iterator[tuple[str, Iterable[memoryview | bytes]]]:
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        if module in layers:
            weight = read_tensor(tensor, on_bytes_read=on_bytes_read)
            yield from pieces_of(module, weight, layers[module], error)
        else:
            yield name, read_bytes(tensor, on_bytes_read)
