"""The tests on the installed torch_npu, one process for each situation: ``make test-torch-npu`` runs this.

Further arguments are pytest's. It needs a C and a C++ compiler, but neither a card nor CANN.

(The folder is not called torch_npu because tests/ is on the path of the ordinary tests: ``import torch_npu`` would
find it.)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from ascend import host_npu, torch_npu_build  # noqa: E402


SITUATIONS = {"no_card": 0, "host_memory": 1}
"""Folder of tests: number of cards."""


def main() -> int:
    torch_npu_build.build()
    status = 0
    for folder, cards in SITUATIONS.items():
        command = [sys.executable, "-m", "pytest", str(HERE / folder), *sys.argv[1:]]
        child = subprocess.run(command, env=host_npu.environment(cards), cwd=HERE.parents[1], check=False)
        status = status or child.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
