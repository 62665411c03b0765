"""Checkpoints with random weights in the published layout: for tests, demonstrations and measurements.

Folders, files, tensor names, dtypes and config keys are those of ``deepgenteam/DeepGen-1.0-diffusers``; the
pictures are noise. Names and shapes come from the models themselves, built without memory, so that the files
follow the configs below and nothing else. Weights are drawn and written in pieces: writing a checkpoint takes
some hundred MB, whatever its size.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .checkpoint import PARTS, CheckpointError
from .checkpoint_structure import vlm_name
from .files import read_json
from .random_sizes import SIZES, Size
from .random_values import random_values
from .weights import empty_model


MARKER = "_deepgen_random_weights"
"""The key of ``model_index.json`` that tells a random checkpoint from a trained one."""

Shapes = dict[str, tuple[int, ...]]

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_REMOTE_CODE = 'raise RuntimeError("remote code from the checkpoint folder was executed")\n'


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file: everything about it but the values.

    Attributes:
        name: Its place in the folder, with ``/``.
        dtype: The safetensors name of the dtype of all its tensors.
        metadata: Whether the header says ``format=pt``, as transformers and diffusers write it.
        shapes: Shape by stored name, sorted by name, which is the order in the file.
    """

    name: str
    dtype: str
    metadata: bool
    shapes: Shapes

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def header(self) -> bytes:
        """The JSON between the 8 bytes of its length and the data, padded with blanks as safetensors does."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}} if self.metadata else {}
        itemsize = self.torch_dtype.itemsize
        offset = 0
        for name, shape in self.shapes.items():
            end = offset + math.prod(shape) * itemsize
            entries[name] = {"dtype": self.dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)


def weight_files(size: str | Size) -> list[WeightFile]:
    """The weight files of a size, part by part. No tensor is allocated.

    Names and shapes are those of `Connector`, of diffusers' ``SD3Transformer2DModel`` and ``AutoencoderKL``
    and of transformers' ``Qwen2_5_VLForConditionalGeneration``, with the VLM's names as transformers 4.5x
    saved them (``visual.*``, ``model.*``, no ``lm_head``).

    Raises:
        ValueError: For a size that is not in `SIZES`.
    """
    chosen = find_size(size)
    files = []
    for part in PARTS:
        shapes = _shapes(part, chosen.configs[part])
        if part == "vlm":
            shards = _split(shapes, chosen.shard_bytes)
            for number, names in enumerate(shards, start=1):
                name = f"vlm/model-{number:05}-of-{len(shards):05}.safetensors"
                files.append(WeightFile(name, "BF16", True, {key: shapes[key] for key in sorted(names)}))
        elif part == "connector":
            files.append(WeightFile("connector/model.safetensors", "F32", False, dict(sorted(shapes.items()))))
        else:
            name = f"{part}/diffusion_pytorch_model.safetensors"
            files.append(WeightFile(name, "BF16", True, dict(sorted(shapes.items()))))
    return files


def write(folder: str | os.PathLike[str], size: str | Size = "tiny", seed: int = 0) -> Path:
    """Write a checkpoint with random weights.

    The folder appears, or is replaced, only when everything is written. The same size and seed give the same
    bytes with every version of the libraries.

    Args:
        folder: New, empty, or an earlier random checkpoint without files of anyone else.
        size: A key of `SIZES`, or a size of one's own. ``published`` needs 14 GB on disk.
        seed: Of the weights.

    Returns:
        The folder, absolute.

    Raises:
        CheckpointError: When the folder holds anything else; it is then left as it is.
        ValueError: For an unknown size.
    """
    chosen = find_size(size)
    folder = Path(os.path.realpath(Path(folder).expanduser()))
    files = weight_files(size)
    texts = text_files(chosen, files, size if isinstance(size, str) else "of its own", seed)
    _require_replaceable(folder, {*texts, *(file.name for file in files)})

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that nobody who looks for checkpoints meanwhile finds it.
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        for name, text in texts.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        generator = torch.Generator("cpu").manual_seed(seed)
        for file in files:
            with (temporary / file.name).open("wb") as output:
                _write_weights(output, file, chosen.configs["transformer"], generator)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def is_random_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `write`, by the marker in its ``model_index.json``."""
    try:
        return read_json(Path(folder) / "model_index.json").get(MARKER) is True
    except (OSError, ValueError):
        return False


# Names and shapes


def find_size(name: str | Size) -> Size:
    if isinstance(name, Size):
        return name
    if name not in SIZES:
        raise ValueError(f"size is {name!r}; wanted one of {', '.join(SIZES)}.")
    return SIZES[name]


def _shapes(part: str, config: Mapping[str, Any]) -> Shapes:
    """Shapes by stored name, in the order of the model's modules."""
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(part, config).state_dict().items()}
    if part == "vlm":
        shapes = {legacy_vlm_name(name): shape for name, shape in shapes.items()}
    return shapes


def legacy_vlm_name(name: str) -> str:
    """The name under which transformers 4.5x saved a tensor: the way back from `checkpoint_structure.vlm_name`."""
    if name.startswith("model.visual."):
        legacy = name.removeprefix("model.")
    else:
        legacy = "model." + name.removeprefix("model.language_model.")
    if vlm_name(legacy) != name:
        raise RuntimeError(f"The VLM has a tensor {name}, for which no name of transformers 4.5x is known.")
    return legacy


def _split(shapes: Shapes, shard_bytes: int) -> list[list[str]]:
    """Names by shard: filled up in the order of the model, as ``save_pretrained`` does."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * torch.bfloat16.itemsize
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    return shards


# Values


def _write_weights(
    output: BinaryIO, file: WeightFile, transformer: Mapping[str, Any], generator: torch.Generator
) -> None:
    """The safetensors format: 8 bytes (little-endian header length), the header as JSON, the data."""
    header = file.header()
    output.write(struct.pack("<Q", len(header)))
    output.write(header)
    for name, shape in file.shapes.items():
        for piece in random_values(name, shape, transformer, generator):
            output.write(piece.to(file.torch_dtype).contiguous().view(-1).view(torch.uint8).numpy().data)


# Text files


def text_files(size: Size, files: Sequence[WeightFile], size_name: str, seed: int) -> dict[str, str]:
    """All files but the weights, by place in the folder."""
    configs = size.configs
    index = {
        "_class_name": ["deepgen_pipeline", "DeepGenPipeline"],
        "_diffusers_version": "0.35.2",
        MARKER: True,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    text_config = configs["vlm"]["text_config"]
    generation = {
        "_from_model_config": True,
        "bos_token_id": text_config["bos_token_id"],
        "eos_token_id": text_config["eos_token_id"],
        "transformers_version": configs["vlm"]["transformers_version"],
    }
    vlm = [file for file in files if file.part == "vlm"]
    elements = sum(file.elements for file in vlm)
    shards = {
        "metadata": {"total_parameters": elements, "total_size": elements * torch.bfloat16.itemsize},
        "weight_map": {name: file.name.removeprefix("vlm/") for file in vlm for name in file.shapes},
    }
    vocabulary = {symbol: number for number, symbol in enumerate(size.vocabulary.symbols)}
    # transformers' own JSON is sorted; the others have the order in which people read them.
    return {
        "README.md": (
            f"Random weights (size {size_name}, seed {seed}) in the layout of DeepGen 1.0, for tests and "
            "measurements: this is not the trained model, and its pictures are noise.\n"
        ),
        "model_index.json": _json(index),
        "deepgen_pipeline.py": _REMOTE_CODE,
        "prompt_template.json": _json(size.prompt_template),
        "tokenizer/tokenizer_config.json": _json(size.vocabulary.config()),
        "tokenizer/vocab.json": json.dumps(vocabulary, ensure_ascii=True) + "\n",
        "tokenizer/merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *size.vocabulary.merges)),
        "vlm/config.json": _json(configs["vlm"], sort_keys=True),
        "vlm/generation_config.json": _json(generation),
        "vlm/model.safetensors.index.json": _json(shards, sort_keys=True),
        "connector/config.json": _json(configs["connector"]),
        "transformer/config.json": _json(configs["transformer"], sort_keys=True),
        "vae/config.json": _json(configs["vae"], sort_keys=True),
        "scheduler/scheduler_config.json": _json(configs["scheduler"], sort_keys=True),
    }


def _json(content: Any, sort_keys: bool = False) -> str:
    return json.dumps(content, indent=2, sort_keys=sort_keys) + "\n"


# The folder


def _require_replaceable(folder: Path, own: set[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a folder is wanted.")
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    if not found and not any(folder.iterdir()):
        return
    if not is_random_checkpoint(folder):
        raise CheckpointError(
            f"{folder} is not empty and is no random checkpoint (model_index.json with {MARKER}); "
            "nothing was written. Name another folder."
        )
    foreign = sorted({path.relative_to(folder).as_posix() for path in found} - own)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise CheckpointError(
            f"{folder} is an earlier random checkpoint, but also holds {', '.join(foreign[:3])}{more}, "
            "which would be lost; nothing was written. Name another folder."
        )


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder``; what was there before comes back if that fails."""
    if not folder.exists():
        temporary.rename(folder)
        return
    earlier = folder.with_name(f"{temporary.name}.earlier")
    folder.rename(earlier)
    try:
        temporary.rename(folder)
    except BaseException:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier)
