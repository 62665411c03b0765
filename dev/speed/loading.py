"""Memory and time of loading: `DeepGenPipeline.from_pretrained` against the loaders of the libraries.

    python -m dev.speed loading

Contestants are ours, ours with ``disable_mmap`` (which reads all weights into memory), and the libraries' own, in
turns. Weights are random (`deepgen_npu.tools.random_checkpoint`, size ``benchmark``, 2 GiB in bfloat16). Every
measurement runs in a process of its own, with the files in the page cache. Linux only: it reads ``/proc/self``.

Columns: *resident* is the peak of all memory of the process above its state after the imports, *anonymous* the peak
without mapped files, *ratio* the resident peak divided by the weights. *load* and *first touch* are CPU seconds, of
the load and of reading one element of every page of the weights afterwards, at which mapped pages are read; *both* is
their sum, *wall* the same by the clock. Memory is that of the worst run, seconds are medians.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dev import ROOT
from dev.markdown import head, row, say


LIMIT = 1.15
"""The most that `DeepGenPipeline.from_pretrained` may need, in times of the weights in the target dtype."""
WAYS = {
    "ours": "DeepGenPipeline.from_pretrained",
    "read": "the same, disable_mmap",
    "libraries": "from_pretrained, part by part",
}
_STATUS = Path("/proc/self/status")
_SAMPLE_SECONDS = 0.002
_CHILD = "import sys; from dev.speed.loading import child; child(*sys.argv[1:])"

Row = dict[str, Any]


def table(
    folder: Path | None = None,
    size: str = "benchmark",
    dtypes: Sequence[str] = ("bfloat16", "float32"),
    repeats: int = 3,
) -> str:
    """Measure; the table in Markdown.

    Args:
        folder: Where the checkpoint is, or will be; None for a temporary folder.
        size: Of the checkpoint, a key of `model_sizes.SIZES`.
        dtypes: Of the loaded weights.
        repeats: Fresh processes for each row.

    Raises:
        SystemExit: Where it cannot be measured, and, with the table, when ours needs more than `LIMIT`.
    """
    if not sys.platform.startswith("linux"):
        raise SystemExit(f"Peak memory is read from /proc/self, which {sys.platform} does not have: run it on Linux.")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="deepgen-loading-") as temporary:
            return table(Path(temporary) / "checkpoint", size, dtypes, repeats)
    folder = _checkpoint(folder, size)
    _read_once(folder)
    rows: list[Row] = []
    for dtype in dtypes:
        runs: dict[str, list[Row]] = {way: [] for way in WAYS}
        for number in range(repeats):
            for way, found in runs.items():
                say(f"Loading in {dtype}, run {number + 1} of {repeats}: {WAYS[way]}")
                found.append(_measure_in_child(way, folder, dtype))
        rows += [{"way": way, "dtype": dtype, **_summary(found)} for way, found in runs.items()]
    lines = [*_table(rows), "", f"Versions: {rows[0]['versions']}. Peak memory was read from {rows[0]['source']}."]
    over = [row for row in rows if row["way"] != "libraries" and row["ratio"] > LIMIT]
    for one in over:
        ratio = f"{one['ratio']:.3f} times its weights, more than {LIMIT}"
        lines.append(f"Over the limit: {WAYS[one['way']]} in {one['dtype']} needs {ratio}.")
    if over:
        raise SystemExit("\n".join(lines))
    return "\n".join(lines)


def _summary(runs: list[Row]) -> Row:
    worst = max(runs, key=lambda run: run["resident"])
    medians = {key: statistics.median(run[key] for run in runs) for key in ("load", "touch", "both", "wall")}
    return {**worst, **medians}


def _checkpoint(folder: Path, size: str) -> Path:
    """The checkpoint in ``folder`` if it is a random one of that size, otherwise a new one."""
    from deepgen_npu.checkpoint.folder import Checkpoint
    from deepgen_npu.errors import CheckpointError
    from deepgen_npu.tools.layout import weight_files
    from deepgen_npu.tools.random_checkpoint import is_random_checkpoint, write

    if is_random_checkpoint(folder):
        expected: dict[str, Any] = {}
        for file in weight_files(size):
            expected.setdefault(file.part, {}).update(file.shapes)
        try:
            stored = Checkpoint.open(folder).tensors
        except CheckpointError:
            stored = {}
        if expected == {
            part: {name: tensor.shape for name, tensor in tensors.items()} for part, tensors in stored.items()
        }:
            return folder
    start = time.perf_counter()
    try:
        written = write(folder, size)
    except CheckpointError as error:
        raise SystemExit(str(error)) from None
    print(f"Wrote {written} in {time.perf_counter() - start:.0f} s.", file=sys.stderr)
    return written


def _read_once(folder: Path) -> None:
    """Read the files once, so that every run finds them in the page cache."""
    buffer = bytearray(16 * 1024 * 1024)
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _measure_in_child(way: str, folder: Path, dtype: str) -> Row:
    command = [sys.executable, "-c", _CHILD, way, str(folder.resolve()), dtype]
    # One thread: CPU seconds of several include those in which they wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise SystemExit(f"{way} with {dtype} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _table(rows: list[Row]) -> list[str]:
    memory, seconds = ("weights", "resident", "anonymous"), ("load", "touch", "both", "wall")
    titles = ("load, CPU s", "first touch, CPU s", "both, CPU s", "wall, s")
    lines = head("dtype", "loader", *(f"{name} GiB" for name in memory), "ratio", *titles)
    for one in rows:
        cells = [one["dtype"], WAYS[one["way"]], *(f"{one[key] / 2**30:.3f}" for key in memory), f"{one['ratio']:.3f}"]
        lines.append(row(*cells, *(f"{one[key]:.2f}" for key in seconds)))
    return lines


# In the child


def child(way: str, folder: str, dtype_name: str) -> None:
    """Measure and print JSON.

    Args:
        way: A key of `WAYS`.
        folder: The checkpoint.
        dtype_name: Of the loaded weights.
    """
    print(json.dumps(measure(way, Path(folder), dtype_name)))


def measure(way: str, folder: Path, dtype_name: str) -> Row:
    """Load once in this process.

    Args:
        way: A key of `WAYS`.
        folder: The checkpoint.
        dtype_name: Of the loaded weights.

    Returns:
        Bytes of ``weights``, ``resident`` and ``anonymous``, their ``ratio``, the seconds and ``versions``.
    """
    import diffusers
    import torch
    import transformers

    from deepgen_npu.checkpoint.folder import Checkpoint

    dtype = getattr(torch, dtype_name)
    checkpoint = Checkpoint.open(folder)
    weights = sum(checkpoint.elements(part) for part in checkpoint.tensors) * dtype.itemsize
    load = _libraries(checkpoint.configs["connector"]) if way == "libraries" else _ours(disable_mmap=way == "read")
    torch.empty(1024, 1024).normal_().sum()  # starts the thread pool
    gc.collect()

    with _Peak() as peak:
        start, times = time.perf_counter(), [peak.cpu_seconds()]
        models = load(folder, dtype)
        times.append(peak.cpu_seconds())
        # Mapped weights that were not read yet would be missing in the peak.
        elements = _touch(models, dtype)
        times.append(peak.cpu_seconds())
        wall = time.perf_counter() - start
    if elements * dtype.itemsize != weights:
        raise RuntimeError(f"{way} loaded {elements} elements in {dtype}, but the files have {weights} bytes of it.")
    return {
        "weights": weights,
        "resident": peak.resident,
        "anonymous": peak.anonymous,
        "ratio": peak.resident / weights,
        "load": times[1] - times[0],
        "touch": times[2] - times[1],
        "both": times[2] - times[0],
        "wall": wall,
        "source": peak.source,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"diffusers {diffusers.__version__}",
    }


Loader = Callable[[Path, Any], list[Any]]


def _ours(disable_mmap: bool) -> Loader:
    """Imports now, the load later."""
    from deepgen_npu.pipeline import DeepGenPipeline

    _import_models()

    def load(folder: Path, dtype: Any) -> list[Any]:
        pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=dtype, disable_mmap=disable_mmap)
        return [pipe.vlm, pipe.connector, pipe.transformer, pipe.vae]

    return load


def _libraries(config: dict[str, Any]) -> Loader:
    """The loaders of the libraries for each part; the connector as the published script loads it."""
    import torch
    from safetensors.torch import load_file

    from deepgen_npu.model.connector import Connector

    SD3Transformer2DModel, AutoencoderKL, Qwen2_5_VL, Tokenizer = _import_models()

    def load(folder: Path, dtype: Any) -> list[Any]:
        Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        vlm = Qwen2_5_VL.from_pretrained(folder / "vlm", dtype=dtype, local_files_only=True)
        with torch.device("meta"):
            connector = Connector(config)
        state = load_file(folder / "connector" / "model.safetensors")
        connector.load_state_dict(state, assign=True)
        del state
        connector.to(dtype)
        parts = [
            model_class.from_pretrained(folder / part, torch_dtype=dtype, local_files_only=True)
            for part, model_class in (("transformer", SD3Transformer2DModel), ("vae", AutoencoderKL))
        ]
        return [vlm, connector, *parts]

    return load


def _import_models() -> tuple[Any, ...]:
    """Both libraries import the module of a class on first use: import them all before the measurement."""
    import accelerate  # noqa: F401
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel  # noqa: F401
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast

    return SD3Transformer2DModel, AutoencoderKL, Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast


def _touch(models: list[Any], dtype: Any) -> int:
    """Read one element of every memory page of the weights; returns the number of elements in ``dtype``.

    Tied weights (lm_head) count once; rotary frequencies are not in a state dict.
    """
    by_address: dict[int, Any] = {}
    for model in models:
        for tensor in model.state_dict().values():
            by_address.setdefault(tensor.data_ptr(), tensor)
    tensors = [tensor for tensor in by_address.values() if tensor.dtype == dtype]
    for tensor in tensors:
        tensor.reshape(-1)[:: 4096 // tensor.element_size()].float().sum().item()
    return sum(tensor.numel() for tensor in tensors)


class _Peak:
    """Peak memory between enter and exit, above the state at enter.

    Attributes:
        resident: Bytes of the process in memory, mapped files included.
        anonymous: The same without mapped files.
        source: Where ``resident`` was read.
    """

    resident = 0
    anonymous = 0
    source = ""
    _own_seconds = 0.0

    def cpu_seconds(self) -> float:
        """Of this process, without those of watching its memory."""
        return time.process_time() - self._own_seconds

    def __enter__(self) -> _Peak:
        self._sampled: dict[str, int] = {"VmRSS": 0, "RssAnon": 0}
        try:
            # 5 resets the high-water mark of the kernel to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
            self.source = "VmHWM"
        except OSError:
            self.source = f"VmRSS every {_SAMPLE_SECONDS * 1000:.0f} ms"
        self._start = _status()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        end = _status()
        highest = self._sampled["VmRSS"]
        # A mark that was not reset is still the peak if loading has raised it.
        if self.source == "VmHWM" or end["VmHWM"] > self._start["VmHWM"]:
            highest = max(highest, end["VmHWM"])
        self.resident = highest - self._start["VmRSS"]
        self.anonymous = max(self._sampled["RssAnon"], end["RssAnon"]) - self._start["RssAnon"]

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            status = _status()
            for key, highest in self._sampled.items():
                self._sampled[key] = max(highest, status[key])
            self._own_seconds = time.thread_time()


def _status() -> dict[str, int]:
    """VmHWM, VmRSS and RssAnon of this process in bytes."""

    def lines() -> Iterator[tuple[str, int]]:
        for line in _STATUS.read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("VmHWM", "VmRSS", "RssAnon"):
                yield key, int(value.split()[0]) * 1024

    return dict(lines())
