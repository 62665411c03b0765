"""Many different runs in one ComfyUI, to find memory leaks.

    python -m dev.soak [--runs 50] [--on npu] [--comfyui VERSION]

The runs differ in nodes, seed, prompt, size, images, dtype and model; some are cancelled, and after some everything is
unloaded (``/free``). Prints a line for each run, a chart, and the criteria:

- after each unloading, the device has exactly as many bytes in use as before the first run;
- main memory does not grow in the second half: its least-squares line rises by less than `BOUND_MB` in total. It is
  measured after a garbage collection and after the allocator has returned its free memory;
- on average, no more than `BOUND_TENSORS` more tensors are alive than in the same run of the previous cycle.

The exit status is 1 if one of them fails. Linux only. COMFYUI_PATH and COMFYUI_PYTHON name the checkouts, as for the
tests; the NPU is the simulated one of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from deepgen_npu.tools.model_sizes import SIZES
from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.checkouts import all_checkouts, find_checkouts
from dev.comfyui.client import Client
from dev.comfyui.graphs import core, edit, generation, ksampler, load_image, loader, modular, sampling, save
from dev.comfyui.probe import PACKS, Probe, device_bytes, wait_until
from dev.comfyui.server import ComfyServer, ServerError, ServerOptions


BOUND_MB = 8.0
"""Ten times what was measured, rounded."""
BOUND_TENSORS = 10
CYCLE = 20
CANCELLED = (6, 13, 19)
FREED = (8, 18)
"""Runs of a cycle, counted from 1."""
MODELS = ("first", "second")
COLOURS = ("red", "green", "blue", "gray")
NPU_MIB = 64 * 1024
LAYER = "transformer.transformer_blocks.1.attn.to_q"
_DIT = SIZES["tiny"].configs["transformer"]
WIDTH = _DIT["attention_head_dim"] * _DIT["num_attention_heads"]
LORA = {"A": (2, WIDTH), "B": (WIDTH, 2)}
"""Shapes of a LoRA on that layer of the tiny model, by the letters of its keys."""


@dataclass
class Row:
    """After one run. ``device_after`` is what the device had in use after unloading, if everything was unloaded."""

    what: str
    status: str
    seconds: float
    resident_mb: float
    held_mb: float
    tensors: int
    device: int
    device_after: int | None = None


def prepare(base: Path) -> None:
    """Write two small models with random weights, a LoRA, and images to edit."""
    for seed, name in enumerate(MODELS):
        write(base / "models" / "deepgen" / name, "tiny", seed)
    (base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {f"{LAYER}.lora_{side}.weight": torch.randn(shape, generator=generator) for side, shape in LORA.items()},
        base / "models" / "loras" / "soak.safetensors",
    )
    (base / "input").mkdir(exist_ok=True)
    for colour in COLOURS:
        Image.new("RGB", (96, 64), colour).save(base / "input" / f"{colour}.png")


def prompts(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to run: (description, graph).

    Except for the seed, runs repeat after `CYCLE`: from then on, the kernels that the CPU library caches by shape, the
    cached encodings and the pieces of the allocator do not grow.
    """
    for number in range(count):
        colour, other = COLOURS[number % 4], COLOURS[(number + 1) % 4]
        side = (64, 128, 96, 128)[number // 5 % 4]
        dtypes = ("float32", "bfloat16") if number // 5 % 2 else ("bfloat16", "float32")
        settings = {"seed": number, "width": side, "height": side, "prompt": f"a {colour} circle"}
        model = {"model": MODELS[number // 2 % 2], "dtype": dtypes[0]}
        captured = number % 7 == 6
        graph = {"loader": loader(**model, capture_graph=captured), "saved": save("make")}
        kind = ("generate", "edit", "modular", "two references", "two loaders")[number % 5]
        if kind == "generate":
            graph["make"] = generation(**settings, batch_size=1 + number // 5 % 2)
        elif kind == "modular":
            seed = settings.pop("seed")
            by_core = number // 5 % 2
            sampler = ksampler(seed=seed, model=["lora", 0]) if by_core else sampling("encode", seed=seed)
            graph |= modular(sampler=sampler, **settings) | {"loader": graph["loader"]}
            if by_core:
                kind = "KSampler, a LoRA"
                inputs = {"model": ["loader", 2], "lora_name": "soak.safetensors", "strength_model": 0.5}
                graph["lora"] = core("LoraLoaderModelOnly", **inputs)
        else:
            graph["picture"] = load_image(f"{colour}.png")
            graph["make"] = edit("picture", **settings)
        if kind == "two references":
            graph["other"] = load_image(f"{other}.png")
            graph["make"]["inputs"]["image_2"] = ["other", 0]
        elif kind == "two loaders":
            graph["second"] = loader(MODELS[0], dtypes[1])
            graph["again"] = edit("make", **settings, pipeline=["second", 0])
            graph["saved"] = save("again")
        yield f"{kind} {side} {model['model']} {model['dtype']}{' captured' * captured}", graph


def soak(server: ComfyServer, runs: int) -> list[Row]:
    """Run and record.

    Raises:
        ServerError: When a run that was not cancelled fails.
    """
    probe, rows = Probe(server), []
    at_start = device_bytes(server)
    with Client(server) as client:
        for number, (what, graph) in enumerate(prompts(runs), start=1):
            cancelled = number % CYCLE in CANCELLED
            if cancelled:
                for node in graph.values():
                    if "steps" in node["inputs"]:
                        node["inputs"]["steps"] = 500
            job = client.start(graph)
            if cancelled:
                job.wait_until(lambda result: len(result.previews) > 1)
                job.interrupt()
            result = job.wait()
            if result.status != ("interrupted" if cancelled else "success"):
                raise ServerError(f"run {number} ({what}): {result.status} {result.error_text}")
            held = probe.memory()
            row = Row(
                what,
                result.status,
                result.seconds,
                held["resident_mb"],
                held["trimmed_mb"],
                int(held["tensors"]),
                device_bytes(server),
            )
            rows.append(row)
            if number % CYCLE in FREED or number == runs:
                left = unload(server, at_start)
                # On the CPU ComfyUI counts all memory of the machine.
                row.device_after = left if server.options.simulated_npu else None
    return rows


def unload(server: ComfyServer, wanted: int) -> int:
    """Unload everything and return the bytes of the device that stay in use; ``wanted`` ends the waiting earlier."""
    server.free()
    with contextlib.suppress(TimeoutError):  # the worker thread does it when it next looks at its queue
        wait_until(lambda: device_bytes(server) <= wanted, "the device's memory", timeout=5)
    return device_bytes(server)


def slope(values: Sequence[float]) -> float:
    """The slope of the least-squares line, per step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    across = sum((index - middle) ** 2 for index in range(len(values)))
    return sum((index - middle) * (value - mean) for index, value in enumerate(values)) / across


def growth(rows: Sequence[Row]) -> tuple[float, float]:
    """(MB per run, MB in total) of main memory in the second half."""
    half = [row.held_mb for row in rows[len(rows) // 2 :]]
    rise = slope(half)
    return rise, rise * (len(half) - 1)


def more_tensors(rows: Sequence[Row]) -> int:
    """How many more tensors are alive than a cycle before, on average over the last cycle."""
    pairs = list(zip(rows[-CYCLE:], rows[-2 * CYCLE : -CYCLE], strict=False))
    return round(sum(now.tensors - before.tensors for now, before in pairs) / max(1, len(pairs)))


def chart(values: Sequence[float], height: int = 10) -> str:
    """A chart in characters."""
    low, high = min(values), max(values)
    scale = (high - low) or 1.0
    levels = [round((value - low) / scale * (height - 1)) for value in values]
    lines = []
    for level in reversed(range(height)):
        label = f"{low + scale * level / (height - 1):8.1f} |"
        lines.append(label + "".join("*" if at == level else " " for at in levels))
    return "\n".join([*lines, " " * 9 + "+" + "-" * len(values)])


def report(rows: Sequence[Row], at_start: int) -> bool:
    """Print the result; whether nothing leaks."""
    print(
        f"{'run':>3} {'seconds':>7} {'resident':>8} {'used MB':>8} {'tensors':>7} {'device':>11} {'unloaded':>8}  what"
    )
    for number, row in enumerate(rows, start=1):
        after = "" if row.device_after is None else f"{row.device_after}"
        print(
            f"{number:3} {row.seconds:7.2f} {row.resident_mb:8.1f} {row.held_mb:8.1f} {row.tensors:7} {row.device:11} "
            f"{after:>8}  {row.what}{'' if row.status == 'success' else ' ' + row.status}"
        )
    print("\nMB of main memory in use after each run:\n" + chart([row.held_mb for row in rows]))
    rise, total = growth(rows)
    stays = {row.device_after for row in rows if row.device_after is not None}
    print(f"\nsecond half: {rise:+.3f} MB per run, {total:+.1f} MB in total (bound: {BOUND_MB})")
    print(f"tensors alive more than a cycle before, on average: {more_tensors(rows)} (bound: {BOUND_TENSORS})")
    print(f"bytes on the device before the first run: {at_start}; after unloading: {sorted(stays)}")
    return total < BOUND_MB and more_tensors(rows) < BOUND_TENSORS and stays <= {at_start}


def main() -> int:
    """Run what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--on", choices=("npu", "cpu"), default="npu", help="the simulated NPU, or the CPU")
    parser.add_argument("--comfyui", help="version to use, e.g. 0.8.0 (default: those that the tests run on)")
    arguments = parser.parse_args()
    sound = True
    for checkout in all_checkouts() if arguments.comfyui else find_checkouts():
        if arguments.comfyui in (None, checkout.version):
            options = ServerOptions(
                packs=PACKS, prepare=prepare, simulated_npu=NPU_MIB if arguments.on == "npu" else 0
            )
            with ComfyServer(checkout, options) as server:
                print(f"ComfyUI {checkout.version}, {arguments.on}, {arguments.runs} runs")
                at_start = device_bytes(server) if arguments.on == "npu" else 0
                sound &= report(soak(server, arguments.runs), at_start)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
