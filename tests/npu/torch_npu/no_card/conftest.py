"""torch_npu is installed and loads, and there is no card."""

from __future__ import annotations

from dev.npu_simulator import host_npu


host_npu.require(cards=0)
