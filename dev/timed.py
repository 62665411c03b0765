"""Run a part of CI and record its time.

    python -m dev.timed PART COMMAND...
    python -m dev.timed

The second form shows the records of build/times.txt; commands of the same part are summed. CPU seconds include the
processes that the command started and waited for: on a busy machine they say more than the clock. Linux and macOS
only.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path


NOTES = Path(__file__).resolve().parents[1] / "build" / "times.txt"


def run(part: str, command: list[str]) -> int:
    """Run a command and record it; its exit status."""
    began = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a", encoding="utf-8") as notes:
        cpu_seconds = spent.ru_utime + spent.ru_stime
        verdict = "ok" if status == 0 else "FAILED"
        notes.write(f"{part} {time.monotonic() - began:.1f} {cpu_seconds:.1f} {verdict}\n")
    return status if status >= 0 else 128 - status


def show() -> None:
    """Print the records."""
    seconds: defaultdict[str, float] = defaultdict(float)
    cpu_seconds: defaultdict[str, float] = defaultdict(float)
    failed = set()
    for line in NOTES.read_text(encoding="utf-8").splitlines() if NOTES.is_file() else []:
        part, by_the_clock, of_the_cpu, verdict = line.split()
        seconds[part] += float(by_the_clock)
        cpu_seconds[part] += float(of_the_cpu)
        failed |= {part} if verdict == "FAILED" else set()
    print(f"{'part':42} {'seconds':>8} {'CPU s':>8}")
    for part in seconds:
        print(f"{part:42} {seconds[part]:8.0f} {cpu_seconds[part]:8.0f}  {'FAILED' if part in failed else 'ok'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    show()
