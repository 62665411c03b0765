"""The published layout: the files of a checkpoint, the names and shapes of their tensors, and the small text files.

Folders, files, tensor names, dtypes and config keys are those of ``deepgenteam/DeepGen-1.0-diffusers``. Names and
shapes come from the models themselves, built without memory, so that the files depend on the configs alone.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import PARTS
from ..checkpoint.index_keys import RANDOM_WEIGHTS_KEY
from ..checkpoint.structure import vlm_name
from ..checkpoint.weights import empty_model
from ..dtypes import stored_dtype
from .model_sizes import Size, find_size


Shapes = dict[str, tuple[int, ...]]


_REMOTE_CODE = 'raise RuntimeError("remote code from the checkpoint folder was executed")\n'


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file: everything about it but the values.

    Attributes:
        name: Its path in the folder, with ``/``.
        dtype: The safetensors name of the dtype of all its tensors.
        metadata: Whether the header contains ``format=pt``, as transformers and diffusers write it.
        shapes: Shape by stored name, sorted by name, which is the order in the file.
    """

    name: str
    dtype: str
    metadata: bool
    shapes: Shapes

    @property
    def part(self) -> str:
        """``vlm``, ``connector``, ``transformer`` or ``vae``."""
        return self.name.partition("/")[0]

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return stored_dtype(self.dtype)

    @property
    def elements(self) -> int:
        """Number of elements of all its tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def save(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the file.

        Args:
            path: Where; an existing file is overwritten.
            tensors: By stored name; rounded to the file's dtype. Names that the file does not have are ignored.
        """
        from safetensors.torch import save_file

        stored = {name: tensors[name].detach().to(self.torch_dtype).contiguous() for name in self.shapes}
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
        save_file(stored, path, metadata={"format": "pt"} if self.metadata else None)
        path.chmod(mode)  # safetensors makes what it writes readable by its owner only


def weight_files(size: str | Size) -> list[WeightFile]:
    """The weight files of a size, part by part, without allocating tensors.

    Names and shapes are those of `Connector`, of diffusers' ``SD3Transformer2DModel`` and ``AutoencoderKL``
    and of transformers' ``Qwen2_5_VLForConditionalGeneration``, with the VLM's names as transformers 4.5x
    saved them (``visual.*``, ``model.*``, no ``lm_head``).

    Args:
        size: A key of `SIZES`, or a size.

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


def _shapes(part: str, config: Mapping[str, Any]) -> Shapes:
    """Shapes by stored name, in the order of the model's modules."""
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(part, config).state_dict().items()}
    if part == "vlm":
        shapes = {legacy_vlm_name(name): shape for name, shape in shapes.items()}
    return shapes


def legacy_vlm_name(name: str) -> str:
    """The name under which transformers 4.5x saved a tensor: the inverse of `checkpoint.structure.vlm_name`."""
    if name.startswith("model.visual."):
        legacy = name.removeprefix("model.")
    else:
        legacy = "model." + name.removeprefix("model.language_model.")
    if vlm_name(legacy) != name:
        raise RuntimeError(f"The VLM has a tensor {name}, whose name in transformers 4.5x is unknown.")
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


def text_files(size: Size, files: Sequence[WeightFile], size_name: str, seed: int) -> dict[str, str]:
    """The content of all files but the weights, by path in the folder.

    Args:
        size: The dimensions.
        files: The weight files, for the index of the VLM.
        size_name: For the README.
        seed: Of the weights, for the README.
    """
    configs = size.configs
    index = {
        "_class_name": ["deepgen_pipeline", "DeepGenPipeline"],
        "_diffusers_version": "0.35.2",
        RANDOM_WEIGHTS_KEY: True,
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
    # transformers writes its JSON sorted; the other files have the published order.
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
