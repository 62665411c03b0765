"""The schemas that the simulated device uses are those of the installed torch_npu."""

from __future__ import annotations

import inspect

import pytest
import torch

from dev.npu_simulator.kernels import KERNELS
from dev.npu_simulator.schemas import SCHEMAS


def test_every_kernel_has_a_schema():
    assert KERNELS.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schema_is_the_real_one(name):
    assert str(getattr(torch.ops.npu, name).default._schema) == f"npu::{SCHEMAS[name]}"


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_takes_the_arguments_of_the_schema(name):
    schema = getattr(torch.ops.npu, name).default._schema
    parameters = inspect.signature(KERNELS[name]).parameters
    names = [argument.name for argument in schema.arguments]
    taken = [one for one in parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(taken) == len(parameters):
        assert names == list(parameters)
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
