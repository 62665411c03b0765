"""A LoRA file: which layers of the DiT it changes, by its header. Nothing of its data is read and torch is not needed.

Only safetensors files are read, since other formats can execute code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import tensor_shapes
from ..checkpoint.safetensors_header import SafetensorsFile, StoredTensor, read_safetensors
from ..checks import Named, must_be, number
from ..dtypes import ANY_ITEM_BYTES, is_float
from ..errors import CheckpointError, LoraError
from . import keys, shapes
from .names import EXAMPLES, Layer, LayerNames
from .settings import PEFT_FILE, Settings


NAMES_IN_FOLDER = ("pytorch_lora_weights.safetensors", PEFT_FILE)
"""Names under which diffusers and PEFT save a LoRA in a folder."""

MAX_HEADER_BYTES = 16 << 20
"""Trainers keep their settings and the tags of all training images in the header."""

MAX_STRENGTH = 100.0
"""As in ComfyUI."""

WHICH = "Choose a LoRA for SD3.5-medium or for DeepGen."

_OTHERS = {
    "single_transformer_blocks": "FLUX",
    "double_blocks": "FLUX",
    "single_blocks": "FLUX",
    "down_blocks": "Stable Diffusion 1.5 or SDXL",
    "input_blocks": "Stable Diffusion 1.5 or SDXL",
}
"""What stands in the names of other models' layers."""


@dataclass(frozen=True)
class LayerChange:
    """What a file has for one layer.

    Attributes:
        layer: Which.
        name: Its name in the file.
        tensors: By what they are (see `keys`).
        alpha: Numerator of the scale, in a tensor of its own.
        scale: If there is no alpha.
    """

    layer: Layer
    name: str
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    alpha: StoredTensor | None = field(repr=False)
    scale: float


@dataclass(frozen=True)
class LoraFile:
    """What a file changes.

    Attributes:
        path: The file.
        changes: Of the layers that the DiT has.
        unmatched: Keys that mean nothing for the DiT, in the order of the alphabet.
    """

    path: Path
    changes: tuple[LayerChange, ...] = field(repr=False)
    unmatched: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA that a user chose.

    Attributes:
        path: The file, or the folder that contains it.
        strength: 1 is as trained, 0 changes nothing, below 0 it does the opposite.
    """

    path: Path
    strength: float = 1.0

    @property
    def name(self) -> str:
        """Of the file or folder, without where it is."""
        return self.path.name

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "strength": self.strength}

    def __str__(self) -> str:
        return f"{self.name} at strength {self.strength:g}"


def strength(name: str, value: object) -> float:
    """A finite number that is not absurd.

    Args:
        name: What the caller knows it by.
        value: Checked.
    """
    return number(name, value, -MAX_STRENGTH, MAX_STRENGTH)


def find_file(path: str | os.PathLike[str]) -> Path:
    """The file that a path means: itself, or the one in a folder as diffusers and PEFT save it.

    Raises:
        LoraError: When there is none.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # ~USER where there is no such user
        raise LoraError(f"There is no LoRA file {path}: {error}") from None
    if os.path.isdir(path):
        for name in NAMES_IN_FOLDER:
            if os.path.isfile(path / name):
                return path / name
        advice = "Pass the file of the LoRA."
        found = Named("a folder without them")
        raise LoraError(must_be(str(path), f"a folder with {' or '.join(NAMES_IN_FOLDER)}", found, advice=advice))
    if not os.path.lexists(path):
        raise LoraError(f"There is no LoRA file {path}.")
    if path.suffix.lower() != ".safetensors":
        advice = "Other formats can run code when they are read. Convert it, or look for one in this format."
        raise LoraError(must_be("the file of a LoRA", "a .safetensors file", str(path), advice=advice))
    return path


def inspect(path: str | os.PathLike[str], tensors: Mapping[str, tuple[int, ...]]) -> LoraFile:
    """Check a LoRA file by its header.

    Args:
        path: The file, or the folder that contains it.
        tensors: Names and shapes of the DiT's tensors, as diffusers has them.

    Raises:
        LoraError: When the file cannot be read, is made for another model, or is of a kind that is not known.
    """
    file = find_file(path)
    stored = _header(file)
    names = LayerNames(tensors)
    found: dict[Layer, tuple[str, dict[str, str]]] = {}  # its name in the file, and its keys by what they are
    unmatched = []
    for key in stored.tensors:
        name, part = keys.split(key)
        layer = None if part is None else names.find(name)
        if part is None or layer is None or (part in keys.BIASES and not _has_bias(layer, tensors)):
            unmatched.append(key)
            continue
        name, parts = found.setdefault(layer, (name, {}))
        if parts.setdefault(part, key) != key:
            both = f"{parts[part]} and {key}, which mean the same"
            raise LoraError(f"{file} has {both}. Save its adapters in a file each.")
    for layer, (_, parts) in list(found.items()):
        if parts.keys() == {"alpha"}:
            unmatched.append(parts["alpha"])
            del found[layer]
    if not any(parts.keys() - {keys.NEW_WEIGHT, keys.NEW_BIAS} for _, parts in found.values()):
        raise _of_another_model(file, stored, whole=bool(found))
    settings = Settings.read(file, stored.metadata)
    changes = tuple(_change(file, stored, settings, layer, *one, tensors) for layer, one in found.items())
    return LoraFile(file, changes, tuple(sorted(unmatched)))


def check_choices(choices: Iterable[LoraChoice], config: Mapping[str, Any]) -> list[LoraFile]:
    """Check the files that a user chose, before any weights are read.

    Args:
        choices: With their strengths.
        config: Of the DiT.

    Raises:
        LoraError: As `inspect`.
    """
    return [inspect(choice.path, tensor_shapes.transformer(config)) for choice in choices]


def _header(file: Path) -> SafetensorsFile:
    try:
        return read_safetensors(file, MAX_HEADER_BYTES, "Download the file again.", ANY_ITEM_BYTES)
    except FileNotFoundError:
        raise LoraError(f"There is no LoRA file {file}.") from None
    except CheckpointError as error:
        raise LoraError(str(error)) from None


def _has_bias(layer: Layer, tensors: Mapping[str, tuple[int, ...]]) -> bool:
    return all(f"{module}.bias" in tensors for module in layer.modules)


def _change(
    file: Path,
    stored: SafetensorsFile,
    settings: Settings,
    layer: Layer,
    name: str,
    parts: Mapping[str, str],
    tensors: Mapping[str, tuple[int, ...]],
) -> LayerChange:
    """The change of one layer, if its tensors are complete and fit the layer."""
    try:
        keys.check(name, parts)
    except ValueError as error:
        raise LoraError(f"{file} {error}") from None
    of_layer = {part: stored.tensors[key] for part, key in parts.items()}
    alpha = of_layer.pop("alpha", None)
    if alpha is not None and math.prod(alpha.shape) != 1:
        raise LoraError(f"{file}: {must_be(parts['alpha'], 'one number', list(alpha.shape))}")
    for part, tensor in of_layer.items():
        if not is_float(tensor.dtype):
            raise LoraError(f"{file}: {must_be(f'the dtype of {parts[part]}', 'a float', tensor.dtype)}")
    of_modules = [tensors[f"{module}.weight"] for module in layer.modules]
    given = {part: tensor.shape for part, tensor in of_layer.items()}
    try:
        shapes.check(given, (sum(shape[0] for shape in of_modules), *of_modules[0][1:]))
    except ValueError as error:
        raise LoraError(f"{file} is not made for this model. Of {name}, {error} {WHICH}") from None
    return LayerChange(layer, name, of_layer, alpha, settings.scale(name, shapes.rank(given)))


def _of_another_model(file: Path, stored: SafetensorsFile, whole: bool) -> LoraError:
    if whole:
        return LoraError(f"{file} is no LoRA: it lacks adapters, and has weights of a whole model. {WHICH}")
    model = next((model for part, model in _OTHERS.items() if any(part in key for key in stored.tensors)), None)
    made = f", and seems to be made for {model}" if model else ""
    return LoraError(
        f"{file} is not made for this model: it lacks every layer of DeepGen's DiT, which is SD3.5-medium. None of "
        f"its {len(stored.tensors)} keys names one, as {EXAMPLES[0]}.lora_A.weight or {EXAMPLES[1]}.lora_down.weight "
        f"would; the first is {min(stored.tensors)[:200]!r}{made}. {WHICH}"
    )
