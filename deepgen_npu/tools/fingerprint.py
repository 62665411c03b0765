"""A short name of a model's content. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from ..checkpoint.folder import PARTS, Checkpoint, StoredTensor
from ..files import open_regular
from ..lora.file import LoraChoice, check_choices


_SAMPLE_BYTES = 64
"""From the start of each tensor."""


def fingerprint(checkpoint: Checkpoint, drawn: str = "", loras: Iterable[LoraChoice] = ()) -> str:
    """Of a model, independent of its folder and of how its files are split.

    It covers configs, prompt template and, for each tensor, name, dtype, shape and first bytes: enough to distinguish
    any two trainings without reading 12.6 GiB.

    Args:
        checkpoint: The model.
        drawn: What the weights are drawn from, for a model without files.
        loras: What is merged into the weights.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256(drawn.encode())

    def add(content: Any) -> None:
        digest.update(json.dumps(content, sort_keys=True).encode())

    add({name: dict(config) for name, config in checkpoint.stored_configs.items()})
    add(dict(checkpoint.prompt_template))
    for part in PARTS:
        for name, tensor in sorted(checkpoint.tensors[part].items()):
            add([part, name, tensor.dtype, list(tensor.shape)])
            if not drawn:
                digest.update(_sample(tensor))
    chosen = list(loras)
    for choice, file in zip(chosen, check_choices(chosen, checkpoint.configs["transformer"]), strict=True):
        add(["lora", choice.strength])
        for change in sorted(file.changes, key=lambda one: one.name):
            alpha = {} if change.alpha is None else {"alpha": change.alpha}
            add([change.layer.modules, change.scale])
            for part, tensor in sorted({**change.tensors, **alpha}.items()):
                add([part, tensor.dtype, list(tensor.shape)])
                digest.update(_sample(tensor))
    return digest.hexdigest()


def _sample(tensor: StoredTensor) -> bytes:
    with open_regular(tensor.file) as file:
        file.seek(tensor.offset)
        return file.read(min(_SAMPLE_BYTES, tensor.nbytes))
