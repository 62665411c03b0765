"""Values of any kind from a description that JSON can carry, for inputs that come over a wire.

A description is {"kind": KIND, ...}; see `build`.
"""

from __future__ import annotations

import fractions
from typing import Any

import numpy as np
import torch


NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class Odd:
    """An object of no known kind, which cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def build(what: dict[str, Any]) -> Any:
    """The value.

    Kinds:
        plain: ``value``, as JSON has it.
        number: ``value`` is "nan", "inf", "-inf" or the digits of a whole number; ``type`` its Python or numpy type.
        object: ``value`` names one of no use.
        tensor: see `tensor`.
        latent: a dict of ``items``, each a description.
        list: of ``items``.
    """
    kind = what["kind"]
    if kind == "plain":
        return what["value"]
    if kind == "number":
        return number(what["value"], what["type"])
    if kind == "object":
        return {"object": Odd(), "bytes": b"42", "set": {1}, "type": int, "complex": 1j, "range": range(3)}[
            what["value"]
        ]
    if kind == "latent":
        return {name: build(item) for name, item in what["items"].items()}
    if kind == "list":
        return [build(item) for item in what["items"]]
    return tensor(what)


def number(value: str, type_name: str) -> Any:
    found = NUMBERS[value] if value in NUMBERS else float(value) if "." in value or "e" in value else int(value)
    types = {"int": int, "float": float, "numpy": np.float64, "float32": np.float32, "int64": np.int64}
    if type_name == "fraction":
        return fractions.Fraction(found)
    return types[type_name](found)


def tensor(what: dict[str, Any]) -> torch.Tensor:
    """``shape``, ``dtype``, ``fill`` (a number, "noise", or a number at one place with ``at``), ``layout``."""
    shape, layout = what["shape"], what.get("layout", "dense")
    dtype = getattr(torch, what.get("dtype", "float32"))
    if layout == "meta":
        return torch.zeros(shape, dtype=dtype, device="meta")
    fill = what.get("fill", "noise")
    value = NUMBERS.get(fill, fill) if isinstance(fill, str) else fill
    if layout == "expanded":
        return torch.zeros([1] * len(shape), dtype=dtype).expand(shape)
    generator = torch.Generator().manual_seed(0)
    made = torch.rand(shape, generator=generator)
    if value != "noise" and made.numel():
        if what.get("at") is None:
            made = torch.full(shape, value)
        else:
            made.view(-1)[what["at"] % made.numel()] = value
    made = made.to(dtype)
    if layout == "sparse":
        return made.to_sparse()
    if layout == "quantised":
        return torch.quantize_per_tensor(made.float(), 0.1, 0, torch.quint8)
    if layout == "nested":
        return torch.nested.nested_tensor([torch.zeros(2, 2), torch.zeros(3, 2)])
    if layout == "strided" and made.ndim > 1:
        return made.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "gradient" and made.is_floating_point():
        return made.requires_grad_()
    return made
