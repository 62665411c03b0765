"""Workers of Ray for tests, which find this file by their PYTHONPATH, and a package torch_npu that is simulated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepgen_npu.tools.batch.cluster import Cluster
from deepgen_npu.tools.batch.worker import Worker
from dev.stand_in_worker import wait_for_others


ROOT = Path(__file__).parents[1]

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1, as the kernel writes them."""

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


def listening(mark: str) -> set[str]:
    """Addresses, as the kernel writes them, at which processes listen that have a text in their environment."""
    sockets = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                for one in (folder / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        sockets.add(os.readlink(one))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


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
