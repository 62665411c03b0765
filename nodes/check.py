"""The base class of every node: inputs are compared with what the node declares, before anything is done with them.

ComfyUI checks types and ranges of values that are typed in, and of those not all (NaN passes its limits). What comes
over a wire it hands on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from .check_values import check_inputs, check_value


class DeepGenNode(io.ComfyNode):
    """A node whose inputs are checked. A node has ``run`` in place of ``execute``, and so cannot forget it."""

    run: Any

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        """Called by ComfyUI with the inputs by name; those that are optional and not connected may be absent.

        Raises:
            TypeError: When an input is of another type than the node declares.
            ValueError: When its value is outside of what the node declares.
        """
        return cls.run(**check_inputs(cls.define_schema(), given, cls.counts))

    @classmethod
    def counts(cls, name: str, given: Mapping[str, Any]) -> bool:
        """Whether a number has an effect with the other inputs as they are; only then it must be within its limits."""
        return True

    @classmethod
    def refusal(cls, **typed: Any) -> str:
        """For ``validate_inputs``: the error about values that are typed in, or nothing.

        None stands for a value that comes from another node; it is checked when the node runs.
        """
        given = {name: value for name, value in typed.items() if value is not None}
        try:
            for declared in cls.define_schema().inputs:
                if declared.id in given:
                    check_value(declared, given[declared.id], cls.counts(declared.id, given))
        except (TypeError, ValueError) as error:
            return str(error)
        return ""
