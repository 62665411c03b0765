"""Workers of Ray for tests, which find this file by their PYTHONPATH, and a package torch_npu that is simulated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepgen_npu.tools.batch.cluster import Cluster
from deepgen_npu.tools.batch.worker import Worker
from dev.stand_in_worker import wait_for_others


ROOT = Path(__file__).parents[1]

_SIMULATED = """\
import os, sys
visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")  # read once, as by the real one
ids = list(range(8)) if visible is None else [int(one) for one in visible.split(",")]
sys.modules.pop("torch_npu")  # the simulation registers itself under this name
from dev.npu_simulator.simulated_torch_npu import install
install(cards=len(ids) if ids == sorted(ids) else 0)  # CANN finds none in any other order
"""


def write_torch_npu(folder: Path, version: str) -> str:
    """A package torch_npu for a PYTHONPATH, which is returned.

    Args:
        folder: A new one for it.
        version: Of torch.
    """
    facts = folder / f"torch_npu-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n", encoding="utf-8")
    (folder / "torch_npu").mkdir()
    (folder / "torch_npu" / "__init__.py").write_text(_SIMULATED, encoding="utf-8")
    return os.pathsep.join([str(folder), str(ROOT / "tests"), str(ROOT)])


class Together(Worker):
    """Draws only when all workers of ``together`` (a folder and their number) are up, and says which one it is."""

    def load(self) -> Any:
        painter = super().load()
        wait_for_others(*self.settings["together"])
        return painter

    def draw(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().draw(job), "device": str(os.getpid())}


class TogetherCluster(Cluster):
    worker_class = Together


class Placed(Worker):
    """Has no model, and says what it sees."""

    def load(self) -> Any:
        return self

    def facts(self) -> dict[str, Any]:
        names = "ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
        return {"seen": {name: os.environ.get(name) for name in names}}
