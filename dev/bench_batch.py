"""Measure what workers cost `batch`, and going on with a folder of 100,000 rows. Prints Markdown tables.

    OMP_NUM_THREADS=1 python -m dev.bench_batch [--rows 40] [--milliseconds 300] [--rounds 3] [--resume 100000]

Rows of a stand-in take a fixed time in place of denoising; saving and manifest are the real ones. Rates count from the
moment at which all workers draw. They are compared within a round, and of the rounds the best counts: whatever else
runs on the machine only slows one down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.tools.batch.cluster import ClusterSettings
from deepgen_npu.tools.batch.fingerprints import fingerprint
from deepgen_npu.tools.batch.folder import OutputFolder
from deepgen_npu.tools.batch.local import Local
from deepgen_npu.tools.batch.manifest import OK, Entry, Manifest
from deepgen_npu.tools.batch.names import image_files
from deepgen_npu.tools.batch.rows import Defaults, Row, read_rows
from deepgen_npu.tools.batch.run import Drawer
from deepgen_npu.tools.batch.survey import Job
from deepgen_npu.tools.fingerprint import fingerprint as model_fingerprint
from dev import ROOT
from dev.markdown import head, row, say
from dev.stand_in_worker import SETTINGS, StandIn, StandInCluster


DEMO = ROOT / "demo_checkpoint"
WORKERS = (0, 1, 2)
"""0 is the loop in this process."""


def jobs(count: int, milliseconds: int) -> Iterator[Job]:
    for number in range(count):
        yield Job(
            Row(number, f"r{number}", f"{milliseconds} ms", "", (), None, False, number, 1, 64, 64, None, 1, 1.0),
            f"{number:064x}",
            {},
        )


def rate(workers: int, count: int, milliseconds: int) -> float:
    """Rows a second, with a folder, a manifest and workers of their own."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        drawer: Drawer = Local(lambda: StandIn(output))  # pyright: ignore[reportArgumentType]
        if workers:
            settings = ClusterSettings(workers, None, "cpu", {"CPU": 1.0})
            together = {"together": (str(output / "up"), workers)}
            (output / "up").mkdir()
            worker = {**SETTINGS, **together, "output": temporary}
            drawer = StandInCluster(settings, worker, OutputFolder(output), say)
        with contextlib.closing(Manifest(output / "manifest.jsonl")) as manifest:
            times = []
            for entry in drawer.draw(jobs(count, milliseconds)):
                manifest.add(entry)
                times.append(time.perf_counter())
    before = max(workers, 1)  # the first rows of each
    return (count - before) / (times[-1] - times[before - 1])


def speed(arguments: argparse.Namespace) -> None:
    rounds = []
    for number in range(arguments.rounds):
        rounds.append([rate(workers, arguments.rows, arguments.milliseconds) for workers in WORKERS])
        say(f"round {number + 1}: {', '.join(f'{found:.2f}' for found in rounds[-1])} rows/s")
    print(
        *head("round", "this process", "1 worker", "2 workers", "1 worker / this process", "2 workers / 1"), sep="\n"
    )
    for number, found in enumerate(rounds, 1):
        print(row(number, *(f"{one:.2f} rows/s" for one in found), *map("{:.2f}".format, ratios(found))))
    best = [max(column) for column in zip(*map(ratios, rounds), strict=True)]
    print(row("best", "", "", "", *map("{:.2f}".format, best)), end="\n\n")


def ratios(found: list[float]) -> list[float]:
    return [found[1] / found[0], found[2] / found[1]]


def write_finished(folder: Path, count: int) -> None:
    """A table and what a batch of the demo model would have left of it; images are empty files."""
    table, output = folder / "rows.jsonl", OutputFolder(folder / "out")
    with table.open("w", encoding="utf-8") as file:
        for number in range(count):
            print(json.dumps({"prompt": f"a photo of {number} cats", "height": 64, "width": 64}), file=file)
    run = {"model": model_fingerprint(Checkpoint.open(DEMO)), "dtype": "float32", "vae_tiling": False}
    blank = Entry(
        0, "", OK, seeds=[0], width=64, height=64, seconds=1.0, sha256=["0" * 64], node="node", device="card"
    )
    output.path.mkdir()
    with output.manifest.open("w", encoding="utf-8") as lines:
        for one in read_rows(table, Defaults()):
            assert isinstance(one, Row)
            names = image_files(one.id, one.n)
            for name in names:
                (output.path / name).parent.mkdir(parents=True, exist_ok=True)
                (output.path / name).touch()
            files = [str(name) for name in names]
            entry = replace(blank, row=one.number, id=one.id, files=files, fingerprint=fingerprint(one, run, {}))
            print(json.dumps({name: value for name, value in vars(entry).items() if value}), file=lines)


def resume(count: int) -> None:
    """The same command again, when all is done."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_finished(folder, count)
        options = ["--model_path", str(DEMO), "--dtype", "float32", "--output", str(folder / "out")]
        line: list[Any] = [sys.executable, "-m", "deepgen_npu", "batch", folder / "rows.jsonl", *options]
        start = time.perf_counter()
        done = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        size = (folder / "out" / "manifest.jsonl").stat().st_size
    assert f"{count:,} done before" in done.stdout, done.stdout
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(*head("rows that are done", "manifest", "seconds", "peak memory of the process"), sep="\n")
    print(row(f"{count:,}", f"{size / 1e6:.0f} MB", f"{seconds:.1f}", f"{peak / 1e3:.0f} MB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, usual in (("rows", 40), ("milliseconds", 300), ("rounds", 3), ("resume", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    arguments = parser.parse_args()
    if arguments.resume:
        resume(arguments.resume)  # first: the workers are children, too
    if arguments.rounds:
        speed(arguments)


if __name__ == "__main__":
    main()
