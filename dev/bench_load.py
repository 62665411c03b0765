"""Memory and time of loading: `DeepGenPipeline.from_pretrained` against the loaders of the libraries.

    python -m dev.bench_load [--folder FOLDER] [--dtypes bfloat16 float32] [--repeats 3]

Weights are random (`deepgen_npu.tools.random_checkpoint`, size ``benchmark``, 2 GiB in bfloat16), written once to
``--folder`` or to a temporary folder. Every measurement runs in a process of its own, with the files in the
page cache. Prints a Markdown table; the exit status is 1 when `DeepGenPipeline.from_pretrained` needs more
than `LIMIT` times the weights in the target dtype. Linux only: it reads ``/proc/self``.

Columns: *resident* is the peak of all memory of the process above its state after the imports, *anonymous*
the peak without mapped files, *ratio* the resident peak divided by the weights, *seconds* the load alone.
With ``--repeats``, memory is that of the worst run and seconds are the median.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepgen_npu.checks import must_be
from dev import ROOT


LIMIT = 1.15
WAYS = {"ours": "DeepGenPipeline.from_pretrained", "libraries": "from_pretrained, part by part"}
_STATUS = Path("/proc/self/status")
_SAMPLE_SECONDS = 0.002


def main(arguments: list[str] | None = None) -> int:
    """Measure and print.

    Args:
        arguments: Of the command line; None for those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="Peak memory and time of loading a checkpoint. Linux only.")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is, or will be (default: a temporary folder)"
    )
    parser.add_argument("--size", default="benchmark", help="size of the checkpoint (default: %(default)s)")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["bfloat16", "float32"],
        choices=["bfloat16", "float32", "float16"],
        help="target dtypes (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=1, help="fresh processes for each row (default: 1)")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        print(
            f"dev.bench_load reads peak memory from /proc/self, which {sys.platform} does not have. Run it on Linux.",
            file=sys.stderr,
        )
        return 2
    if options.child:
        print(json.dumps(measure(options.child, options.folder, options.dtypes[0])))
        return 0
    if options.repeats < 1:
        parser.error(must_be("--repeats", "at least 1", options.repeats))
    if options.folder is not None:
        return _report(options.folder, options)
    with tempfile.TemporaryDirectory(prefix="deepgen-bench-") as temporary:
        return _report(Path(temporary) / "checkpoint", options)


def _report(folder: Path, options: argparse.Namespace) -> int:
    folder = _checkpoint(folder, options.size)
    _read_once(folder)
    rows = []
    for dtype in options.dtypes:
        for way in WAYS:
            runs = [_measure_in_child(way, folder, dtype) for _ in range(options.repeats)]
            # The worst memory and the median time.
            worst = max(runs, key=lambda run: run["resident"])
            seconds = sorted(run["seconds"] for run in runs)[len(runs) // 2]
            rows.append({**worst, "way": way, "dtype": dtype, "seconds": seconds})
    print(_table(rows))
    print()
    print(f"Versions: {rows[0]['versions']}. Peak memory was read from {rows[0]['source']}.")
    over = [row for row in rows if row["way"] == "ours" and row["ratio"] > LIMIT]
    for row in over:
        print(f"Over the limit of {LIMIT}: {row['dtype']} needs {row['ratio']:.3f} times its weights.")
    return 1 if over else 0


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


def _measure_in_child(way: str, folder: Path, dtype: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "dev.bench_load", "--child", way]
    command += ["--folder", str(folder.resolve()), "--dtypes", dtype]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{way} with {dtype} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _table(rows: list[dict[str, Any]]) -> str:
    heads = ["dtype", "loader", "weights GiB", "resident GiB", "anonymous GiB", "ratio", "seconds"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        sizes = [f"{row[key] / 2**30:.3f}" for key in ("weights", "resident", "anonymous")]
        cells = [row["dtype"], WAYS[row["way"]], *sizes, f"{row['ratio']:.3f}", f"{row['seconds']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# In the child


def measure(way: str, folder: Path, dtype_name: str) -> dict[str, Any]:
    """Load once in this process.

    Args:
        way: A key of `WAYS`.
        folder: The checkpoint.
        dtype_name: Of the loaded weights.

    Returns:
        Bytes of ``weights``, ``resident`` and ``anonymous``, their ``ratio``, ``seconds`` and ``versions``.
    """
    import diffusers
    import torch
    import transformers

    from deepgen_npu.checkpoint.folder import Checkpoint

    dtype = getattr(torch, dtype_name)
    checkpoint = Checkpoint.open(folder)
    weights = sum(checkpoint.elements(part) for part in checkpoint.tensors) * dtype.itemsize
    load = {"ours": _ours, "libraries": _libraries}[way]()
    torch.empty(1024, 1024).normal_().sum()  # starts the thread pool
    gc.collect()

    with _Peak() as peak:
        start = time.perf_counter()
        models = load(folder, dtype)
        seconds = time.perf_counter() - start
        # Mapped weights that were not read yet would be missing in the peak.
        elements = _touch(models, dtype)
    if elements * dtype.itemsize != weights:
        raise RuntimeError(f"{way} loaded {elements} elements in {dtype}, but the files have {weights} bytes of it.")
    return {
        "weights": weights,
        "resident": peak.resident,
        "anonymous": peak.anonymous,
        "ratio": peak.resident / weights,
        "seconds": seconds,
        "source": peak.source,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"diffusers {diffusers.__version__}",
    }


Loader = Callable[[Path, Any], list[Any]]


def _ours() -> Loader:
    """Imports now, the load later."""
    from deepgen_npu.pipeline import DeepGenPipeline

    _import_models()

    def load(folder: Path, dtype: Any) -> list[Any]:
        pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=dtype)
        return [pipe.vlm, pipe.connector, pipe.transformer, pipe.vae]

    return load


def _libraries() -> Loader:
    """The loaders of the libraries for each part; the connector as the published script loads it."""
    import torch
    from safetensors.torch import load_file

    from deepgen_npu.model.connector import Connector

    SD3Transformer2DModel, AutoencoderKL, Qwen2_5_VL, Tokenizer = _import_models()

    def load(folder: Path, dtype: Any) -> list[Any]:
        Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        vlm = Qwen2_5_VL.from_pretrained(folder / "vlm", dtype=dtype, local_files_only=True)
        config = json.loads((folder / "connector" / "config.json").read_text(encoding="utf-8"))
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


def _status() -> dict[str, int]:
    """VmHWM, VmRSS and RssAnon of this process in bytes."""

    def lines() -> Iterator[tuple[str, int]]:
        for line in _STATUS.read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("VmHWM", "VmRSS", "RssAnon"):
                yield key, int(value.split()[0]) * 1024

    return dict(lines())


if __name__ == "__main__":
    sys.exit(main())
