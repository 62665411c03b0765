"""torch_npu with one card whose memory is host memory."""

from __future__ import annotations

import pytest
import torch
from golden import TINY

from deepgen_npu import DeepGenPipeline
from dev.npu_simulator import host_npu


host_npu.require(cards=1)
host_npu.install()


def pytest_configure(config):
    # PyTorch's clone, which stands in for CANN's, asks torch_npu for an empty tensor in a way that it never does.
    config.addinivalue_line("filterwarnings", "ignore:Cannot create tensor with internal format:UserWarning")


@pytest.fixture(scope="session")
def npu_pipe() -> DeepGenPipeline:
    """The tiny checkpoint in float32 on the card; leave it as you found it."""
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device="npu")
    pipe.set_progress_bar_config(disable=True)
    return pipe
