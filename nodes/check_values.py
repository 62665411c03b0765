"""The rules of a node's inputs, by their type in ComfyUI. `check_tensors` has those of tensors.

Each returns the value as the node takes it, or raises an error that begins with the name of the input. Nothing of
ComfyUI is imported: a declaration is anything with the attributes of ``io.Input``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ..deepgen_npu import checks
from ..deepgen_npu.checks import must_be, type_of
from ..deepgen_npu.sizes import nearest_sides
from .check_tensors import conditioning, image, latent, mask


if TYPE_CHECKING:
    from comfy_api.latest import io


def check_inputs(
    schema: io.Schema, given: Mapping[str, Any], counts: Callable[[str, Mapping[str, Any]], bool]
) -> dict[str, Any]:
    """The inputs as ``run`` takes them: numbers as int and float, tensors without a gradient.

    Args:
        schema: What the node declares.
        given: Values by the names of inputs.
        counts: See `DeepGenNode.counts`.
    """
    declared = {one.id: one for one in schema.inputs}
    for name in given:
        if name not in declared:
            raise ValueError(f"{name} is not an input of {schema.display_name}: connect one of {', '.join(declared)}.")
    checked = {}
    for name, one in declared.items():
        if name in given:
            checked[name] = check_value(one, given[name], counts(name, given))
        elif not one.optional:
            raise ValueError(f"{name} is missing: connect it, or set its value.")
    return checked


def check_value(declared: io.Input, value: Any, counts: bool = True) -> Any:
    """One input as ``run`` takes it.

    Args:
        declared: The input.
        value: What was typed in or came over a wire.
        counts: False for a number that has no effect, and so may be outside of its limits.
    """
    # Another node may say with None that it has nothing for a socket. A widget always has a value.
    if value is None and declared.optional and declared.io_type in SOCKETS:
        return None
    rule = RULES[declared.io_type]
    return rule(declared, value) if counts else _integer(declared, value)


def _integer(declared: io.Input, value: Any, requirement: str = "an integer") -> int:
    """Also a float such as 512.0, which a node for arithmetic makes."""
    found: Any = value
    if isinstance(value, Real) and not isinstance(value, Integral):
        with contextlib.suppress(OverflowError):  # a fraction beyond every float
            found = int(float(value)) if float(value).is_integer() else value
    return checks.integer(declared.id, found, -sys.maxsize, None, requirement)


def _integer_in_range(declared: io.Input, value: Any) -> int:
    low, high, step = declared.min, declared.max, declared.step or 1
    requirement = f"{f'a multiple of {step}' if step > 1 else 'an integer'} from {low} to {high}"
    found = _integer(declared, value, requirement)
    if low <= found <= high and found % step == 0:
        return found
    nearest = nearest_sides(found, step, high) if step > 1 else ()
    raise ValueError(must_be(declared.id, requirement, value, nearest))


def _number(declared: io.Input, value: Any) -> float:
    return checks.number(declared.id, value, declared.min, declared.max)


def _text(declared: io.Input, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(must_be(declared.id, "a string", value))
    return value


def _switch(declared: io.Input, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(must_be(declared.id, "true or false", value))
    return value


def _choice(declared: io.Input, value: Any) -> str:
    if isinstance(value, str) and value in declared.options:
        return value
    raise ValueError(must_be(declared.id, one_of(declared.options), value))


def one_of(options: Sequence[str]) -> str:
    """A requirement: ``one of 'a', 'b', 'c'``. In quotes, since the entries of our lists have blanks and commas."""
    if not options:
        return "an entry of its list, which is empty"
    quoted = [repr(option) for option in options[:20]]
    further = f" and {len(options) - len(quoted)} more" if len(options) > len(quoted) else ""
    return f"one of {', '.join(quoted)}{further}"


def _pipeline(declared: io.Input, value: Any) -> Any:
    from .lazy_pipeline import LazyPipeline

    if not isinstance(value, LazyPipeline):
        raise TypeError(must_be(declared.id, "the output of DeepGen Loader", type_of(value)))
    return value


def _region(declared: io.Input, value: Any) -> Any:
    from .crops import CroppedRegions

    if not isinstance(value, CroppedRegions):
        raise TypeError(must_be(declared.id, "the output of DeepGen Crop Region", type_of(value)))
    return value


def _model(declared: io.Input, value: Any) -> Any:
    from .native.model import DeepGenModel

    if not isinstance(getattr(value, "model", None), DeepGenModel):
        raise TypeError(must_be(declared.id, "a MODEL of DeepGen Loader", type_of(getattr(value, "model", value))))
    return value


SOCKETS: dict[str, Callable[[io.Input, Any], Any]] = {
    "DEEPGEN_PIPELINE": _pipeline,
    "DEEPGEN_CONDITIONING": lambda declared, value: conditioning(declared.id, value),
    "MODEL": _model,
    "DEEPGEN_REGION": _region,
    "IMAGE": lambda declared, value: image(declared.id, value),
    "MASK": lambda declared, value: mask(declared.id, value),
    "LATENT": lambda declared, value: latent(declared.id, value),
}
"""The rules of inputs that have a wire and no widget."""

RULES: dict[str, Callable[[io.Input, Any], Any]] = {
    "INT": _integer_in_range,
    "FLOAT": _number,
    "STRING": _text,
    "BOOLEAN": _switch,
    "COMBO": _choice,
    **SOCKETS,
}
"""How an input is checked, by its type in ComfyUI. One without a rule is an error of the node, and of a test."""
