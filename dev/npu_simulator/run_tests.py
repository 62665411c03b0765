"""Run the tests on the installed torch_npu, in one process for each situation.

    python -m dev.npu_simulator.run_tests [PYTEST ARGUMENTS]

``make test-torch-npu`` does so. It needs a C and a C++ compiler, but neither a card nor CANN.
"""

from __future__ import annotations

import subprocess
import sys

from dev import ROOT
from dev.npu_simulator import host_npu, torch_npu_build


TESTS = ROOT / "tests" / "npu" / "torch_npu"
SITUATIONS = {"no_card": 0, "host_memory": 1}
"""Folder of tests: number of cards."""


def main() -> int:
    """Build what is missing and run the tests; the exit status."""
    torch_npu_build.build()
    status = 0
    for folder, cards in SITUATIONS.items():
        command = [sys.executable, "-m", "pytest", str(TESTS / folder), *sys.argv[1:]]
        child = subprocess.run(command, env=host_npu.environment(cards), cwd=ROOT, check=False)
        status = status or child.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
