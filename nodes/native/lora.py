"""A LoRA as patches of a MODEL, which ComfyUI applies when it brings a weight to the device.

ComfyUI's own loader knows the names of some trainers and drops the keys of the others, and computes DoRA in a way of
its own. So names and kinds are read by the library, and each patch calls the library for what it does to a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...deepgen_npu.checkpoint.tensor_shapes import transformer
from ...deepgen_npu.errors import LoraError
from ...deepgen_npu.lora.adapters import report
from ...deepgen_npu.lora.changes import Change, read_changes
from ...deepgen_npu.lora.file import inspect
from ...deepgen_npu.lora.names import Layer


if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PREFIX = "diffusion_model."
"""Before the names of the DiT's modules in a MODEL."""


@dataclass(frozen=True)
class Part:
    """What a patch is of a change, besides the tensors.

    Attributes:
        layer: As the file has it.
        names: What each tensor is, as of `Change`.
        scale: As of `Change`.
        kind: Whether it is for the ``weight`` or for the ``bias``.
        rows: Those of the layer that the module has.
        total: How many rows the layer has.
    """

    layer: Layer
    names: tuple[str, ...]
    scale: float
    kind: str
    rows: slice
    total: int


class LoraPatch(WeightAdapterBase):
    """A change of one weight or bias; ComfyUI calls it with the weight.

    Args:
        loaded_keys: As ComfyUI has it: not needed here.
        weights: The `Part` and its tensors. Newer versions of ComfyUI make a copy of the patch with the tensors on the
            device.
    """

    name = "deepgen"

    def __init__(self, loaded_keys: set[str], weights: Any):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, strength_model: float, *others: Any, **more: Any
    ) -> Tensor:
        """Change the weight in place.

        Args:
            weight: Of the module, in any dtype; it is changed in float32.
            key: Its name.
            strength: 1 is as trained.
            strength_model: Was applied by ComfyUI.
            others: Of ComfyUI's own kinds of patches.
            more: The same.
        """
        part, *tensors = self.weights
        change = Change(part.layer, dict(zip(part.names, tensors, strict=True)), part.scale)
        # The other rows of the layer count for nothing: each row is changed by itself (see `_refuse_columns`).
        whole = torch.zeros(part.total, *weight.shape[1:], device=weight.device)
        whole[part.rows] = weight.float()
        half = part.total // 2 if part.layer.swapped else 0
        changed = getattr(change, part.kind)(whole.roll(half, 0), strength).roll(half, 0)
        return weight.copy_(changed[part.rows])


def with_lora(patcher: ModelPatcher, path: str, strength: float) -> ModelPatcher:
    """A clone of a MODEL that has a LoRA besides what it had.

    Args:
        patcher: Of DeepGen.
        path: The file, which is read now. The log names its keys that have no effect.
        strength: 1 is as trained; 0 changes nothing.

    Raises:
        LoraError: When it cannot be used (see `file.inspect`), or is a DoRA that cannot be applied weight by weight.
    """
    file = inspect(path, transformer(patcher.model.diffusion_model.config))
    changes = read_changes(file)
    shapes = {key: tuple(tensor.shape) for key, tensor in patcher.model.state_dict().items()}
    for change in changes:
        _refuse_columns(path, change, shapes)
    report(file)
    patched = patcher.clone()
    if strength:
        rounds: list[dict[str, LoraPatch]] = []  # a file may change a weight under two names
        for key, patch in (pair for change in changes for pair in _patches(change, shapes)):
            free = next((patches for patches in rounds if key not in patches), None)
            if free is None:
                rounds.append(free := {})
            free[key] = patch
        for patches in rounds:
            patched.add_patches(patches, strength)
    return patched


def _patches(change: Change, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, LoraPatch]]:
    """One for each weight and bias of the layer, by its key in the MODEL."""
    counts = _rows(change, shapes)
    kinds = [kind for kind in ("weight", "bias") if getattr(change, f"changes_{kind}")]
    start = 0
    for module, count in zip(change.layer.modules, counts, strict=True):
        for kind in kinds:
            rows = slice(start, start + count)
            part = Part(change.layer, tuple(change.tensors), change.scale, kind, rows, sum(counts))
            yield f"{PREFIX}{module}.{kind}", LoraPatch(set(), (part, *change.tensors.values()))
        start += count


def _rows(change: Change, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    return [shapes[f"{PREFIX}{module}.weight"][0] for module in change.layer.modules]


def _refuse_columns(path: str, change: Change, shapes: dict[str, tuple[int, ...]]) -> None:
    """A DoRA with a length for each column of queries, keys and values together: it needs all three at once."""
    modules, lengths = change.layer.modules, change.tensors.get("dora_scale")
    if len(modules) > 1 and lengths is not None and lengths.numel() != sum(_rows(change, shapes)):
        raise LoraError(
            f"{path} is a DoRA with lengths of the columns of {', '.join(modules)} together, which ComfyUI changes "
            "one by one. Draw with it on the command line, or train it with lengths of rows."
        )
