"""What a published folder looks like: its files, the names and shapes of its tensors, and its small text files.

Folders, files, tensor names, dtypes and config keys are those of ``deepgenteam/DeepGen-1.0-diffusers``. Names and
shapes come from the models themselves, built without memory, so that the files follow the configs and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
        return stored_dtype(self.dtype)

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


def text_files(size: Size, files: Sequence[WeightFile], size_name: str, seed: int) -> dict[str, str]:
    """All files but the weights, by place in the folder."""
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
