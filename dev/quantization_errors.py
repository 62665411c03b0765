"""Relative errors of quantised layers with random weights: for `dev.quantization_tables`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deepgen_npu.checkpoint.quantized import by_stored_names
from deepgen_npu.formatting import command
from deepgen_npu.quantization.formats import FORMATS, INT8, LayerFormat, format_for
from deepgen_npu.quantization.linear import QuantizedLinear, comfy_kitchen
from deepgen_npu.tools.random_model import RandomModel
from deepgen_npu.tools.random_values import random_tensor


ROWS = 64
"""Of random inputs."""

OUTLIERS, TIMES = 0.01, 20
"""Part of the columns that are larger than the others, and how many times."""

ROUNDED = ", inputs rounded"
"""After the name of a format."""

ERRORS = (
    *(f"weight, {title}" for title in FORMATS),
    *(f"result, {title}" for title in FORMATS),
    *(f"result, {title}{ROUNDED}" for title in FORMATS if title != "fp8"),
)
"""What `errors_of` returns."""


@dataclass(frozen=True)
class Layer:
    """One layer of those that have a shape in common.

    Attributes:
        part: Of the model.
        name: As stored, without ``.weight``.
        shape: Of the weight.
        count: How many layers of the part have it.
    """

    part: str
    name: str
    shape: tuple[int, int]
    count: int


def distinct_layers(size: str) -> list[Layer]:
    """One layer of each shape that is quantised in all formats."""
    model = RandomModel.of_size(size, title="int8_convrot")
    found: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for part, layers in model.checkpoint.quantized.items():
        tensors = model.checkpoint.tensors[part]
        for name in by_stored_names(part, tensors, layers):
            rows, columns = tensors[f"{name}.weight"].shape
            found.setdefault((part, (rows, columns)), []).append(name)
    return [Layer(part, names[0], shape, len(names)) for (part, shape), names in found.items()]


@torch.no_grad()
def errors_of(weight: Tensor, inputs: Tensor) -> list[float]:
    """Relative errors in the order of `ERRORS`.

    Args:
        weight: [n, m] in float32, with a width that every format takes.
        inputs: [rows, m] in float32.
    """
    wanted = inputs @ weight.T
    of_weights, of_results, rounded = [], [], []
    for title in FORMATS:
        layer = format_for(title, weight.shape[1])
        assert layer is not None
        linear = quantized_linear(layer, weight)
        of_weights.append(relative(linear.dequantized(torch.float32), weight))
        of_results.append(relative(linear(inputs), wanted))
        if layer.name == INT8:
            with inputs_rounded():
                rounded.append(relative(linear(inputs), wanted))
    return [*of_weights, *of_results, *rounded]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The length of the difference over the length of what is wanted."""
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def quantized_linear(layer: LayerFormat, weight: Tensor) -> QuantizedLinear:
    """A layer with a weight [n, m], on the CPU."""
    rows, columns = weight.shape
    linear = QuantizedLinear(layer, columns, rows, None).to_empty(device="cpu")
    linear.quantize_(weight)
    return linear


@contextmanager
def inputs_rounded() -> Iterator[None]:
    """Have int8 layers compute on the CPU as they do on a GPU, by comfy-kitchen."""
    if comfy_kitchen() is None:
        raise ImportError(f"Rounding inputs needs comfy-kitchen:{command('pip install comfy-kitchen')}")
    before = QuantizedLinear.forward
    QuantizedLinear.forward = lambda self, x: self._by_kitchen(x) if self.layer.name == INT8 else before(self, x)
    try:
        yield
    finally:
        QuantizedLinear.forward = before


def errors_by_shape(size: str) -> Iterator[tuple[Layer, list[float]]]:
    """Errors of a layer of each shape, with the weights of random checkpoints (uniform) and normal inputs."""
    config = RandomModel.of_size(size).checkpoint.configs["transformer"]
    for layer in distinct_layers(size):
        generator = torch.Generator().manual_seed(0)
        name = f"{layer.name}.weight"
        weight = random_tensor(name, layer.shape, config, generator, torch.bfloat16, dtype=torch.float32)
        yield layer, errors_of(weight, torch.randn(ROWS, layer.shape[1], generator=generator))


def errors_by_outliers(shape: tuple[int, int]) -> Iterator[tuple[str, str, list[float]]]:
    """Errors for weights of a shape and inputs with and without outliers; each after what was drawn, in words."""
    generator = torch.Generator()

    def normal(*sides: int) -> Tensor:
        return torch.randn(*sides, generator=generator)

    def heavy(*sides: int) -> Tensor:
        """Student's t with 3 degrees of freedom."""
        return normal(*sides) / torch.stack([normal(*sides) ** 2 for _ in range(3)]).mean(0).sqrt()

    def with_outliers(*sides: int) -> Tensor:
        values = normal(*sides)
        chosen = torch.randperm(sides[1], generator=generator)[: max(1, int(sides[1] * OUTLIERS))]
        values[:, chosen] *= TIMES
        return values

    outliers = f"{100 * OUTLIERS:g} % of columns {TIMES} times as large"
    tails = "heavy tails (Student's t, 3 degrees of freedom)"
    drawn: tuple[tuple[str, Callable[..., Tensor], str, Callable[..., Tensor]], ...] = (
        ("normal", normal, "normal", normal),
        (tails, heavy, "normal", normal),
        (outliers, with_outliers, "normal", normal),
        ("normal", normal, outliers, with_outliers),
        (outliers, with_outliers, outliers, with_outliers),
    )
    for weights, draw_weight, inputs, draw_inputs in drawn:
        generator.manual_seed(0)
        yield weights, inputs, errors_of(draw_weight(*shape), draw_inputs(ROWS, shape[1]))
