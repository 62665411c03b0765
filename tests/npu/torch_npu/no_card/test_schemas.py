"""The operators and functions that our code and the simulated device use are those of the installed torch_npu."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from importlib.metadata import version

import pytest
import torch

from deepgen_npu import graphs
from dev import ROOT
from dev.npu_simulator import schemas
from dev.npu_simulator.kernels import KERNELS
from dev.npu_simulator.schemas import SCHEMAS


HERE = schemas.of(version("torch_npu"))


def test_every_kernel_has_a_schema():
    assert KERNELS.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schema_is_the_real_one(name):
    operator = getattr(torch.ops.npu, name, None)
    found = None if operator is None else str(operator.default._schema)
    assert found == (f"npu::{HERE[name]}" if name in HERE else None)


@pytest.mark.parametrize("name", sorted(HERE))
def test_kernel_takes_the_arguments_of_the_schema(name):
    schema = getattr(torch.ops.npu, name).default._schema
    parameters = inspect.signature(KERNELS[name]).parameters
    names = [argument.name for argument in schema.arguments]
    taken = [one for one in parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(taken) == len(parameters):
        # Older releases lack arguments that were added later.
        assert names == [one for one in parameters if one in names or HERE[name] == SCHEMAS[name]]
    else:  # **others refuses what is not modelled
        assert [one.name for one in taken] == [one for one in names if one in parameters]
    for argument in schema.arguments:
        parameter = parameters.get(argument.name)
        if parameter is None:
            continue
        assert argument.kwarg_only == (parameter.kind is inspect.Parameter.KEYWORD_ONLY), argument.name
        assert argument.has_default_value() == (parameter.default is not inspect.Parameter.empty), argument.name
        if argument.has_default_value():
            assert argument.default_value == parameter.default, argument.name


def called_of_torch_npu() -> set[str]:
    """``a.b`` wherever our code says ``torch.npu.a.b``, or says it of the module of a device that it was given."""
    found = {graphs._GRAPHS["npu"]}
    for folder in ("deepgen_npu", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                if called := re.fullmatch(r"(?:torch\.npu|_backend\([\w.]+\)|backend)\.([\w.]+)", name):
                    found.add(called[1])
    return found


def test_torch_npu_has_what_we_call():
    names = called_of_torch_npu()
    assert {"set_device", "set_compile_mode", "mem_get_info", "empty_cache", "graph", "Stream"} <= names
    missing = []
    for name in sorted(names - {"config.allow_internal_format"}):  # it can only be written: host_memory/test_card.py
        try:
            functools.reduce(getattr, name.split("."), torch.npu)
        except AttributeError:
            missing.append(name)
    assert not missing
