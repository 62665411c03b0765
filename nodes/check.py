"""The door of every node: what came in is compared with what the node declares, before anything is done with it.

ComfyUI checks kinds and ranges of values that are typed in, and of those not all (NaN passes its limits). What comes
over a wire it hands on as it is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io

from ..deepgen_npu import checks
from ..deepgen_npu.checks import shown
from ..deepgen_npu.sizes import nearest_sides
from .check_tensors import conditioning, image, latent


class DeepGenNode(io.ComfyNode):
    """A node whose inputs are checked. A node has ``run`` in place of ``execute``, and so cannot forget it."""

    run: Any

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        """Called by ComfyUI with the inputs by name; those that are optional and not connected may be absent.

        Raises:
            TypeError: When an input is of another kind than the node declares.
            ValueError: When it is outside of what the node declares.
        """
        return cls.run(**check_inputs(cls.define_schema(), given, cls.counts))

    @classmethod
    def counts(cls, name: str, given: Mapping[str, Any]) -> bool:
        """Whether a number has an effect beside the other inputs; only then it has to be within its limits."""
        return True

    @classmethod
    def refusal(cls, **typed: Any) -> str:
        """For ``validate_inputs``: what is wrong with values that are typed in, or nothing.

        None stands for a value that comes from another node; it is checked when the node runs.
        """
        given = {name: value for name, value in typed.items() if value is not None}
        try:
            for declared in cls.define_schema().inputs:
                if declared.id in given:
                    _checked(declared, given[declared.id], cls.counts(declared.id, given))
        except (TypeError, ValueError) as error:
            return str(error)
        return ""


def check_inputs(
    schema: io.Schema, given: Mapping[str, Any], counts: Callable[[str, Mapping[str, Any]], bool]
) -> dict[str, Any]:
    """The inputs as ``run`` takes them: numbers as int and float, tensors without a gradient."""
    declared = {one.id: one for one in schema.inputs}
    for name in given:
        if name not in declared:
            raise ValueError(
                f"{name} is connected, and {schema.display_name} has no such input. It has {', '.join(declared)}."
            )
    checked = {}
    for name, one in declared.items():
        if name in given:
            checked[name] = _checked(one, given[name], counts(name, given))
        elif not one.optional:
            raise ValueError(f"{name} is missing; connect it, or give it a value.")
    return checked


def _checked(declared: io.Input, value: Any, counts: bool) -> Any:
    # Another node may say with None that it has nothing for a socket. A widget always has a value.
    if value is None and declared.optional and declared.io_type in SOCKETS:
        return None
    rule = RULES[declared.io_type]
    return rule(declared, value) if counts else _any_number(declared, value)


def _any_number(declared: io.Input, value: Any, wanted: str = "a whole number") -> int:
    """Also one such as 512.0, which a node for arithmetic makes."""
    found: Any = value
    if isinstance(value, Real) and not isinstance(value, Integral):
        with contextlib.suppress(OverflowError):  # a fraction beyond every float
            found = int(float(value)) if float(value).is_integer() else value
    return checks.whole(declared.id, found, -sys.maxsize, None, wanted)


def _whole(declared: io.Input, value: Any) -> int:
    low, high, step = declared.min, declared.max, declared.step or 1
    wanted = f"{f'a multiple of {step}' if step > 1 else 'a whole number'} from {low} to {high}"
    found = _any_number(declared, value, wanted)
    if low <= found <= high and found % step == 0:
        return found
    nearest = f" Nearest: {' or '.join(map(str, nearest_sides(found, step, high)))}." if step > 1 else ""
    raise ValueError(f"{declared.id} is {shown(value)}; {wanted} is wanted.{nearest}")


def _number(declared: io.Input, value: Any) -> float:
    return checks.number(declared.id, value, declared.min, declared.max)


def _text(declared: io.Input, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{declared.id} is {shown(value)}; a text is wanted.")
    return value


def _switch(declared: io.Input, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{declared.id} is {shown(value)}; true or false is wanted.")
    return value


def _choice(declared: io.Input, value: Any) -> str:
    if isinstance(value, str) and value in declared.options:
        return value
    raise ValueError(f"{declared.id} is {shown(value)}; {_one_of(declared.options)} is wanted.")


def _one_of(options: Sequence[str]) -> str:
    named = [repr(option) for option in options[:20]]
    if len(options) > len(named):
        return f"{', '.join(named)} or one of {len(options) - len(named)} others"
    return " or ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _pipeline(declared: io.Input, value: Any) -> Any:
    from .lazy_pipeline import LazyPipeline

    if not isinstance(value, LazyPipeline):
        raise TypeError(f"{declared.id} is a {type(value).__name__}; connect the output of DeepGen Loader.")
    return value


SOCKETS: dict[str, Callable[[io.Input, Any], Any]] = {
    "DEEPGEN_PIPELINE": _pipeline,
    "DEEPGEN_CONDITIONING": lambda declared, value: conditioning(declared.id, value),
    "IMAGE": lambda declared, value: image(declared.id, value),
    "LATENT": lambda declared, value: latent(declared.id, value),
}
RULES: dict[str, Callable[[io.Input, Any], Any]] = {
    "INT": _whole,
    "FLOAT": _number,
    "STRING": _text,
    "BOOLEAN": _switch,
    "COMBO": _choice,
    **SOCKETS,
}
"""How an input is checked, by its type in ComfyUI. One without a rule is an error of the node, and of a test."""
