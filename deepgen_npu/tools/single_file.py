"""The DiT as one file for ComfyUI's own loader of diffusion models, which knows it as SD3.

It has the names of SD3's reference implementation, in which queries, keys and values are one layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ..checkpoint.folder import Checkpoint
from ..checkpoint.reading import BytesRead, read_tensor
from ..checkpoint.safetensors_writer import write_safetensors
from ..checks import Named, must_be
from ..errors import UsageError
from ..files import FileError, made, replacing, require_room
from ..lora.names import by_reference_names
from ..model.positions import STAYS_ON_HOST
from ..quantization.formats import LayerFormat
from .quantize import DtypeAndShape, QuantizedPart, bytes_of, described, pieces_of


HEAD_OF_SD3 = 64
"""Width of a head. ComfyUI takes the number of heads from the number of blocks, and divides the width by it."""


def write_transformer(
    checkpoint: Checkpoint, target: Path, planned: QuantizedPart, on_bytes_read: BytesRead | None = None
) -> None:
    """Write the DiT of a checkpoint with quantised layers. One layer at a time is in memory.

    Args:
        checkpoint: The source.
        target: A new file.
        planned: What `quantize.plan` returned of ``transformer``; size and error are written to it.
        on_bytes_read: Called with the number of bytes of each piece that was read.

    Raises:
        FileError: When the target exists or its disk is too full.
    """
    if target.exists():
        raise FileError(f"{target} already exists. Name a new file.")
    file = _SingleFile(checkpoint, planned, on_bytes_read)
    with made(target.parent):
        require_room(target.parent, checkpoint.nbytes("transformer"), "TARGET")  # more than it will be
        with replacing(target) as unfinished:
            planned.after = write_safetensors(unfinished, file.tensors, file.data(), {"format": "pt"})


def require_sd3(checkpoint: Checkpoint) -> None:
    """Refuse a DiT whose dimensions ComfyUI would read wrongly from the file.

    Raises:
        UsageError: Naming what it has.
    """
    config = checkpoint.configs["transformer"]
    heads, width, blocks = config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]
    if (heads, width) != (blocks, HEAD_OF_SD3):
        requirement = f"a model with heads of {HEAD_OF_SD3} and as many of them as blocks, as DeepGen 1.0 is"
        found = Named(f"{heads} heads of {width} and {blocks} blocks")
        raise UsageError(must_be("SOURCE", requirement, found, advice="Name a folder as TARGET instead."))


class _SingleFile:
    def __init__(self, checkpoint: Checkpoint, planned: QuantizedPart, on_bytes_read: BytesRead | None):
        self._stored = checkpoint.tensors["transformer"]
        self._error, self._on_bytes_read = planned.error, on_bytes_read
        modules = dict.fromkeys(name.rpartition(".")[0] for name in self._stored)
        self._sources: dict[str, tuple[list[str], bool]] = {"pos_embed": ([STAYS_ON_HOST], False)}
        self._layers: dict[str, LayerFormat] = {}
        for name, layer in by_reference_names(modules):
            for kind in ("weight", "bias"):
                names = [f"{module}.{kind}" for module in layer.modules]
                if names[0] in self._stored:
                    self._sources[f"{name}.{kind}"] = names, layer.swapped
            if layer.modules[0] in planned.layers:
                self._layers[name] = planned.layers[layer.modules[0]]
        rest = self._stored.keys() - {name for names, _ in self._sources.values() for name in names}
        if rest:
            raise RuntimeError(f"SD3's reference implementation has no name for {', '.join(sorted(rest))}.")
        self.tensors = described(
            {name: self._described(names) for name, (names, _) in self._sources.items()}, self._layers
        )

    def data(self) -> Iterator[tuple[str, Iterable[memoryview | bytes]]]:
        for name, (names, swapped) in self._sources.items():
            tensor = torch.cat([read_tensor(self._stored[one], on_bytes_read=self._on_bytes_read) for one in names])
            tensor = tensor.roll(len(tensor) // 2, dims=0) if swapped else tensor
            module = name.removesuffix(".weight")
            if module in self._layers:
                yield from pieces_of(module, tensor, self._layers[module], self._error)
            else:
                yield name, [bytes_of(tensor)]

    def _described(self, names: list[str]) -> DtypeAndShape:
        stored = [self._stored[name] for name in names]
        first = stored[0].shape
        return stored[0].dtype, (sum(one.shape[0] for one in stored), *first[1:])
