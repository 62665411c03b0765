"""A model with random weights that has no files: for measurements without a download.

It equals the model that `random_checkpoint.write` writes, value by value, but is drawn directly on its device.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..checkpoint.folder import PARTS, Checkpoint
from ..checkpoint.quantized import by_stored_names
from ..checkpoint.reading import BytesRead
from ..checkpoint.safetensors_header import StoredTensor
from ..checkpoint.schema import CONFIG_FILES, settings
from ..checkpoint.structure import model_name
from ..checkpoint.weights import empty_model, filled, home_of, load_scheduler, load_tokenizer
from ..dtypes import dtype_of_part
from ..pipeline import DeepGenPipeline
from ..prompts import PromptTemplate
from ..quantization import layers as quantized_layers
from ..quantization.formats import INT8, SCALE, LayerFormat
from ..quantization.values import quantize
from .layout import WeightFile, text_files, weight_files
from .model_sizes import find_size
from .random_values import random_tensor


@dataclass(frozen=True)
class RandomModel:
    """Random weights of one size, drawn when they are loaded.

    Attributes:
        size: A key of `model_sizes.SIZES`.
        checkpoint: As if the folder had been written. Its tensors have names, dtypes and shapes, but their files do
            not exist. The folder, which contains the small files, exists as long as this object.
        seed: Of the weights.
        title: The format of quantised layers; None if there are none.
    """

    size: str
    checkpoint: Checkpoint
    seed: int
    title: str | None
    _files: list[WeightFile]
    _folder: tempfile.TemporaryDirectory[str]

    @classmethod
    def of_size(cls, size: str, seed: int = 0, title: str | None = None) -> RandomModel:
        """Describe a model without allocating its weights.

        Args:
            size: A key of `model_sizes.SIZES`.
            seed: Of the weights.
            title: One of `quantization.formats.FORMATS`, in which layers are quantised as they are drawn; or None.

        Raises:
            ValueError: For an unknown size.
        """
        chosen = find_size(size)
        files = weight_files(chosen)
        texts = text_files(chosen, files, size, seed)
        temporary = tempfile.TemporaryDirectory(prefix="deepgen-random-")
        folder = Path(temporary.name)
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        tensors: dict[str, dict[str, StoredTensor]] = {part: {} for part in PARTS}
        for file in files:
            for name, shape in file.shapes.items():
                nbytes = torch.Size(shape).numel() * file.torch_dtype.itemsize
                tensors[file.part][name] = StoredTensor(folder / file.name, file.dtype, shape, 0, nbytes)
        # Through JSON, as if read from files: tuples become lists.
        stored = {part: json.loads(json.dumps(config)) for part, config in chosen.configs.items()}
        configs = {part: settings(part, folder / CONFIG_FILES[part], config) for part, config in stored.items()}
        index = json.loads(texts["model_index.json"])
        quantized: dict[str, dict[str, LayerFormat]] = {}
        for part in quantized_layers.PARTS if title else ():
            shapes = {model_name(part, name): tensor.shape for name, tensor in tensors[part].items()}
            quantized[part], _ = quantized_layers.plan(part, str(title), shapes)
        checkpoint = Checkpoint(folder, configs, tensors, chosen.prompt_template, index, stored, quantized)
        return cls(size, checkpoint, seed, title, files, temporary)

    @property
    def recipe(self) -> str:
        """What the weights follow from."""
        return " ".join(str(one) for one in (self.size, self.seed, self.title) if one is not None)

    def nbytes(self, dtype: torch.dtype, *parts: str) -> int:
        """Bytes of the weights in memory, of the given parts or of all.

        Args:
            dtype: Of the weights in memory that are not quantised.
            parts: Names of parts.
        """
        return sum(self._nbytes(part, dtype) for part in parts or PARTS)

    def _nbytes(self, part: str, dtype: torch.dtype) -> int:
        dtype = dtype_of_part(part, dtype)
        total = self.checkpoint.elements(part) * dtype.itemsize
        tensors = self.checkpoint.tensors[part]
        for name, layer in by_stored_names(part, tensors, self.checkpoint.quantized.get(part, {})).items():
            rows, columns = tensors[f"{name}.weight"].shape
            total += rows * columns * (1 - dtype.itemsize) + 4 * (rows if layer.name == INT8 else 1)
        return total

    def load(
        self, dtype: torch.dtype, devices: Mapping[str, torch.device], on_bytes_read: BytesRead | None = None
    ) -> DeepGenPipeline:
        """Draw the weights.

        Args:
            dtype: Of the weights in memory.
            devices: A device for each of ``vlm``, ``connector``, ``transformer`` and ``vae``.
            on_bytes_read: Called with the bytes in memory of each piece that was drawn.
        """
        # One generator for all files, as in `random_checkpoint.write`.
        generator = torch.Generator("cpu").manual_seed(self.seed)
        parts: dict[str, Any] = {
            part: self._load_part(part, dtype_of_part(part, dtype), devices[part], generator, on_bytes_read)
            for part in PARTS
        }
        return DeepGenPipeline(
            tokenizer=load_tokenizer(self.checkpoint),
            scheduler=load_scheduler(self.checkpoint),
            prompt_template=PromptTemplate.from_config(self.checkpoint.prompt_template),
            sizes=self.checkpoint.sizes,
            **parts,
        )

    def load_part(self, part: str, dtype: torch.dtype, device: torch.device) -> Any:
        """One part alone. Its values are not those that `load` draws, which draws the parts one after the other.

        Args:
            part: Which one.
            dtype: Of the weights in memory.
            device: Where it is drawn.
        """
        return self._load_part(part, dtype, device, torch.Generator("cpu").manual_seed(self.seed), None)

    @torch.inference_mode(False)
    def _load_part(
        self,
        part: str,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        on_bytes_read: BytesRead | None,
    ) -> Module:
        state: dict[str, Tensor] = {}
        layers = self.checkpoint.quantized.get(part, {})
        for file in self._files:
            if file.part != part:
                continue
            for stored_name, shape in file.shapes.items():
                name = model_name(part, stored_name)
                module = name.removesuffix(".weight")
                tensor = random_tensor(
                    stored_name,
                    shape,
                    self.checkpoint.configs["transformer"],
                    generator,
                    file.torch_dtype,
                    dtype,
                    home_of(name, device),
                    None if module in layers else on_bytes_read,
                )
                if module in layers:
                    tensor, scale = quantize(tensor, layers[module])
                    state[f"{module}.{SCALE}"] = scale
                    if on_bytes_read is not None:
                        on_bytes_read(tensor.nbytes + scale.nbytes)
                state[name] = tensor
        return filled(empty_model(part, self.checkpoint.configs[part], layers), state, device)
