"""Measure cancel latency, and the cost of a second seed, in a real ComfyUI on the CPU.

    python -m dev.measure [--repeats 3] [--comfyui VERSION]

Prints Markdown tables for each ComfyUI that is found (COMFYUI_PATH, COMFYUI_PYTHON, as for the tests) and for two
models: the demo, and one with random weights whose text encoder takes seconds. A second pack in the server counts how
often layers run (`dev.comfyui.probe`); it changes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.checkouts import all_checkouts, find_checkouts
from dev.comfyui.client import Client, Job
from dev.comfyui.graphs import Graph, edit, load_image, loader, save
from dev.comfyui.larger import LARGER, NAME
from dev.comfyui.probe import DIT, PACKS, VAE_DECODER, VAE_ENCODER, VISION_LAYER, VLM_LAYER, Probe, wait_until
from dev.comfyui.result import RunResult
from dev.comfyui.server import ComfyServer, ServerOptions
from nodes.names import DEMO


COUNTED = {
    "layers of the VLM": VLM_LAYER,
    "of the vision tower": VISION_LAYER,
    "VAE encoder": VAE_ENCODER,
    "DiT": DIT,
    "VAE decoder": VAE_DECODER,
}


@dataclass(frozen=True)
class Model:
    """A model in ComfyUI, its size in pixels and its steps."""

    name: str
    title: str
    side: int
    steps: int


MODELS = (Model(DEMO, "demo", 1024, 10), Model(NAME, "random weights, 137 M parameters in the VLM", 256, 4))


def prepare(base: Path) -> None:
    """Write the larger model into the folder of a server."""
    write(base / "models" / "deepgen" / NAME, LARGER)


class Session:
    """Runs of one model."""

    def __init__(self, server: ComfyServer, client: Client, model: Model):
        self.server, self.client, self.model = server, client, model
        self.probe = Probe(server)

    def graph(self, **changes) -> Graph:
        """An edit with the model's settings, changed."""
        settings = {"width": self.model.side, "height": self.model.side, "steps": self.model.steps, **changes}
        return {
            "loader": loader(self.model.name),
            "picture": load_image("example.png"),
            "make": edit("picture", **settings),
            "saved": save("make"),
        }

    def run(self, **changes) -> RunResult:
        """Run `graph`."""
        result = self.client.run(self.graph(**changes), timeout=600)
        if not result.ok:
            raise RuntimeError(result.error_text)
        return result

    def forget_all(self) -> None:
        """Unload all models."""
        loaded = self.probe.memory()["tensors"]
        self.server.free()
        # The worker does so when its queue is empty; a prompt that arrives earlier would run first.
        wait_until(lambda: self.probe.memory()["tensors"] < 0.6 * loaded, "the weights to be unloaded", timeout=30)
        self.probe.new_calls()

    def cancelled(self, when: Callable[[Job], object]) -> float:
        """Seconds from the request to the end of the prompt."""
        job = self.client.start(self.graph())
        when(job)
        start = time.monotonic()
        job.interrupt()
        if job.wait().status != "interrupted":
            raise RuntimeError("the run ended before it could be cancelled")
        return time.monotonic() - start


def phases(session: Session) -> dict[str, float]:
    """Seconds from the first layer of a phase to that of the next, in a run without anything cached."""
    session.forget_all()
    marks = {"start": time.monotonic()}
    job = session.client.start(session.graph())
    for name in (VISION_LAYER, VAE_ENCODER, DIT, VAE_DECODER):
        session.probe.wait_for(name, timeout=300)
        marks[name] = time.monotonic()
    job.wait(600)
    end = time.monotonic()
    return {
        "weights are read": marks[VISION_LAYER] - marks["start"],
        "the prompt is encoded": marks[VAE_ENCODER] - marks[VISION_LAYER],
        "denoising": marks[VAE_DECODER] - marks[DIT],
        "the image is decoded": end - marks[VAE_DECODER],
    }


def cancel_table(session: Session, repeats: int) -> list[str]:
    """The latency of cancelling in each phase, and whether the next image is right."""
    probe = session.probe
    step = session.model.steps

    def reading(job: Job) -> None:
        job.wait_until(lambda result: any(one.max > 1000 for one in result.progress))

    def reaches(name: str) -> Callable[[Job], None]:
        def wait(job: Job) -> None:
            probe.wait_for(name, 2 if name == VLM_LAYER else 1, 300)

        return wait

    whole = session.run().images[0].tobytes()
    lengths = phases(session)
    whens = {
        "weights are read": reading,
        "the prompt is encoded": reaches(VLM_LAYER),
        "denoising": reaches(DIT),
        "the image is decoded": reaches(VAE_DECODER),
    }
    lines = ["| cancelled while | seconds to the end: median, most | the phase takes | the next image |"]
    lines += ["|---|---|---|---|"]
    for phase, when in whens.items():
        seconds, same = [], True
        for _ in range(repeats):
            session.forget_all()
            seconds.append(session.cancelled(when))
            same &= session.run().images[0].tobytes() == whole
        length = f"{lengths[phase]:.2f} s"
        if phase == "denoising":
            length += f", a step {lengths[phase] / step:.2f} s"
        verdict = "identical" if same else "DIFFERS"
        lines.append(f"| {phase} | {statistics.median(seconds):.2f}, {max(seconds):.2f} | {length} | {verdict} |")
    return lines


def seed_table(session: Session, repeats: int) -> list[str]:
    """Seconds and layers of runs that have more or less in common with the one before."""
    cases = (
        ("the first run", {}),
        ("another seed", {"seed": 43}),
        ("another prompt, the same image", {"seed": 43, "prompt": "make it green"}),
        ("the first prompt and seed again", {}),
        ("nothing changed", {}),
    )
    seconds: dict[str, list[float]] = {name: [] for name, _ in cases}
    counts = {}
    for _ in range(repeats):
        session.forget_all()
        for name, changes in cases:
            seconds[name].append(session.run(**changes).seconds)
            counts[name] = session.probe.new_calls(*COUNTED.values())
    lines = [f"| run | seconds (median) | {' | '.join(COUNTED)} |", "|---|---|" + "---|" * len(COUNTED)]
    for name, _ in cases:
        ran = " | ".join(map(str, counts[name]))
        lines.append(f"| {name} | {statistics.median(seconds[name]):.2f} | {ran} |")
    return lines


def main() -> int:
    """Measure what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--comfyui", help="version to use, e.g. 0.8.0 (default: those that the tests run on)")
    arguments = parser.parse_args()
    for checkout in all_checkouts() if arguments.comfyui else find_checkouts():
        if arguments.comfyui not in (None, checkout.version):
            continue
        with ComfyServer(checkout, ServerOptions(packs=PACKS, prepare=prepare)) as server, Client(server) as client:
            for model in MODELS:
                session = Session(server, client, model)
                size = f"{model.side} x {model.side}, {model.steps} steps, float32 on the CPU"
                print(f"\n### ComfyUI {checkout.version}, {model.title}: an edit, {size}\n")
                print("\n".join(cancel_table(session, arguments.repeats)), "\n")
                print("\n".join(seed_table(session, arguments.repeats)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
