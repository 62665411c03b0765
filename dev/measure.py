"""Cancel latency, and what a second seed costs, in a real ComfyUI on the CPU: ``python -m dev.measure``.

Prints Markdown tables for each ComfyUI that is found (COMFYUI_PATH, COMFYUI_PYTHON, as for the tests) and for two
models: the demo, and one with random weights whose text side takes seconds. How often layers ran is counted in the
server by a second pack of ours, which looks on and changes nothing.
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


ROOT = Path(__file__).resolve().parents[1]


COUNTED = {
    "layers of the VLM": VLM_LAYER,
    "of the vision tower": VISION_LAYER,
    "VAE encoder": VAE_ENCODER,
    "DiT": DIT,
    "VAE decoder": VAE_DECODER,
}


@dataclass(frozen=True)
class Model:
    name: str
    title: str
    side: int
    steps: int


MODELS = (Model(DEMO, "demo", 1024, 10), Model(NAME, "random weights, 137 M parameters in the VLM", 256, 4))


def prepare(base: Path) -> None:
    write(base / "models" / "deepgen" / NAME, LARGER)


class Session:
    """Runs of one model."""

    def __init__(self, server: ComfyServer, client: Client, model: Model):
        self.server, self.client, self.model = server, client, model
        self.probe = Probe(server)

    def graph(self, **changes) -> Graph:
        settings = {"width": self.model.side, "height": self.model.side, "steps": self.model.steps, **changes}
        return {
            "loader": loader(self.model.name),
            "picture": load_image("example.png"),
            "make": edit("picture", **settings),
            "saved": save("make"),
        }

    def run(self, **changes) -> RunResult:
        result = self.client.run(self.graph(**changes), timeout=600)
        if not result.ok:
            raise RuntimeError(result.error_text)
        return result

    def forget_all(self) -> None:
        loaded = self.probe.memory()["tensors"]
        self.server.free()
        # The worker does it when it has nothing else to do, and a prompt that comes first is run first.
        wait_until(lambda: self.probe.memory()["tensors"] < 0.6 * loaded, "the weights' end", timeout=30)
        self.probe.new_calls()

    def cancelled(self, when: Callable[[Job], object]) -> float:
        """Seconds from the request to the end of the prompt."""
        job = self.client.start(self.graph())
        when(job)
        asked = time.monotonic()
        job.interrupt()
        if job.wait().status != "interrupted":
            raise RuntimeError("the run ended before it could be cancelled")
        return time.monotonic() - asked


def phases(session: Session) -> dict[str, float]:
    """Seconds from a phase's first layer to the next one's, in a run that has to do everything."""
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
        "the picture is decoded": end - marks[VAE_DECODER],
    }


def cancel_table(session: Session, repeats: int) -> list[str]:
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
        "the picture is decoded": reaches(VAE_DECODER),
    }
    lines = ["| cancelled while | seconds to the end: median, most | the phase takes | the next picture |"]
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
        told = "the same to the bit" if same else "DIFFERS"
        lines.append(f"| {phase} | {statistics.median(seconds):.2f}, {max(seconds):.2f} | {length} | {told} |")
    return lines


def seed_table(session: Session, repeats: int) -> list[str]:
    cases = (
        ("the first run", {}),
        ("another seed", {"seed": 43}),
        ("another prompt, the same picture", {"seed": 43, "prompt": "make it green"}),
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
