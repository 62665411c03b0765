"""What a denoising step launches on an NPU, by operator: counted on the simulated device, at full depth.

Columns are forms of the same step, and, with a revision of this repository, its step before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dev import ROOT
from dev.markdown import head, row


REFERENCES = {"text to image": 0, "edit, 1 reference": 1}

STOCK, APART, TOGETHER, MINDIESD, CAPTURED = "stock", "apart", "together", "mindiesd", "captured"
TITLES = {
    STOCK: "blocks of diffusers",
    APART: "each layer on its own",
    TOGETHER: "joined",
    MINDIESD: "joined, MindIE-SD",
    CAPTURED: "captured",
}

NO_LAUNCHES = TO_DEVICE, TO_HOST, WAITS = "copies to the device", "copies back", "waits"
"""Counted beside the operators; the host waits for the device."""

Counts = dict[str, dict[str, dict[str, int]]]
"""Launches of a step: by form, case and operator."""


def table(before: str | None = None) -> str:
    """Count, in a process of its own each.

    Args:
        before: A revision of this repository to count as well.
    """
    columns = {TITLES[form]: found for form, found in _in(ROOT).items()}
    if before:
        columns = {"before": _of(before), **columns}
    parts = []
    for case in REFERENCES:
        each = {title: found[case] for title, found in columns.items()}
        operators = Counter(
            {name: max(one.get(name, 0) for one in each.values()) for one in each.values() for name in one}
        )
        lines = head(case, *each)
        lines += [row(name, *(one.get(name, 0) or "" for one in each.values())) for name, _ in operators.most_common()]
        lines.append(row("**all**", *(f"**{launches(one)}**" for one in each.values())))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def launches(counts: Mapping[str, int]) -> int:
    """Of all operators."""
    return sum(number for name, number in counts.items() if name not in NO_LAUNCHES)


def _of(revision: str) -> dict[str, dict[str, int]]:
    """The step of a revision, as its library runs it."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(tree), revision], cwd=ROOT, check=True, stdout=sys.stderr
        )
        try:
            shutil.rmtree(tree / "dev" / "speed", ignore_errors=True)
            shutil.copytree(Path(__file__).parent, tree / "dev" / "speed")
            found = _in(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    return found[TOGETHER] if TOGETHER in found else found[APART]


def _in(tree: Path) -> Counts:
    done = subprocess.run(
        [sys.executable, "-m", "dev.speed.launches"], cwd=tree, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


# In the process that counts


def count() -> Counts:
    """Install the simulated device and count."""
    from dev.npu_simulator.simulated_torch_npu import install

    install()  # before diffusers is imported
    return forms()


def forms() -> Counts:
    """Count all forms that this tree has, on a simulated device that is installed."""
    import torch

    from deepgen_npu.denoising import denoise
    from deepgen_npu.model.transformer import predict_velocity
    from dev.speed import deep

    device = torch.device("npu:0")
    model: Any = deep.transformer().to(device)
    found: Counts = {}

    def denoised(references: int, steps: int, **options: Any) -> None:
        given = deep.conditioning(model, references, device=device)
        denoise([model], deep.scheduler(), given, deep.latents(device=device), steps, 4.0, **options)

    def stock(references: int, steps: int) -> None:
        given = deep.conditioning(model, references, device=device)
        texts = given.prompt_embeds.repeat(2, 1, 1), given.pooled_prompt_embeds.repeat(2, 1)
        images = [latents.repeat(2, 1, 1, 1) for latents in given.reference_latents]
        x, timestep = deep.latents(device=device).repeat(2, 1, 1, 1), torch.full((2,), 500.0, device=device)
        for _ in range(steps):
            predict_velocity(model, x, timestep, *texts, images)

    def measure(form: str, run: Callable[..., None], **options: Any) -> None:
        found[form] = {
            case: of_one_step(lambda steps, number=number: run(number, steps, **options))
            for case, number in REFERENCES.items()
        }

    with torch.no_grad():
        measure(STOCK, stock)
        measure(APART, denoised)
        try:
            from deepgen_npu.model.projections import lay_together
            from dev.npu_simulator.simulated_mindiesd import installed
        except ImportError:  # an earlier revision
            return found
        lay_together(model)
        measure(TOGETHER, denoised)
        with installed():
            denoised(0, 1)  # its check
            measure(MINDIESD, denoised)
        measure(CAPTURED, denoised, capture_graph=True)
    return found


def of_one_step(run: Callable[[int], None]) -> dict[str, int]:
    """Launches of each operator, copies and waits: what a second step adds."""
    from dev.npu_simulator import simulated

    def counted(steps: int) -> Counter[str]:
        simulated.reset()
        run(steps)
        counts, views = simulated.state.counts, simulated._NOT_LAUNCHED
        found = Counter({name: number for name, number in counts.operators.items() if name not in views})
        copies = {TO_DEVICE: counts.host_to_device[0], TO_HOST: counts.device_to_host[0]}
        return found + Counter({**copies, WAITS: sum(counts.waits.values())})

    few, many = counted(1), counted(2)
    if few - many:
        raise RuntimeError(f"A step more has less of: {dict(few - many)}. Run once before counting.")
    return {name: many[name] - few[name] for name in many if many[name] > few[name]}


if __name__ == "__main__":
    print(json.dumps(count()))
