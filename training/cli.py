"""``python -m training STAGE`` makes the demo checkpoint, stage by stage; ``make demo-checkpoint`` runs all stages."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from deepgen_npu.locations import DEMO_FOLDER

from .progress import Log


ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "training" / "EVALUATION.md"
MINUTES = {"vae": 9.0, "text": 9.0, "dit": 66.0, "decoder": 6.0}
"""Length of each training stage; the checkpoint in the repository was trained that long."""
STAGES = ("create", "vae", "text", "latents", "dit", "decoder", "evaluate", "publish")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one stage, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, help=f"length of a training stage (default: {MINUTES})")
    parser.add_argument("--samples", type=int, default=80_000, help="captions and edits of the stage latents")
    parser.add_argument("--model", type=Path, help="folder to evaluate (default: that of the run)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch in each process")
    parser.add_argument("--pictures", type=int, help="number of images in each evaluation during the training")
    parser.add_argument("--processes", type=int, default=2, help="processes of the stages latents and dit")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = Log(arguments.work / "log.jsonl")
    folder = arguments.work / "checkpoint"
    state = arguments.work / f"{arguments.stage}.pt"
    seconds = 60 * (arguments.minutes or MINUTES.get(arguments.stage, 0.0))

    if arguments.stage == "create":
        from .model import create

        if not folder.exists():
            create(folder, arguments.seed)
        print(folder)
    elif arguments.stage == "vae":
        from .vae import train

        train(folder, state, seconds, arguments.seed, log, arguments.pictures or 1000)
    elif arguments.stage == "decoder":
        from .vae import finetune_decoder

        finetune_decoder(folder, state, seconds, arguments.seed, log, arguments.pictures or 1000)
    elif arguments.stage == "text":
        from .text import train

        train(folder, state, seconds, arguments.seed, log)
    elif arguments.stage in ("latents", "dit"):
        if arguments.processes == 1:
            _process(0, arguments, seconds, log)
        else:
            spawn(_process, (arguments, seconds, log), nprocs=arguments.processes)
    elif arguments.stage == "evaluate":
        _evaluate(arguments.model or folder, arguments.work)
    elif arguments.stage == "publish":
        from .model import publish

        print(publish(folder, DEMO_FOLDER))


def _evaluate(model: Path, work: Path) -> None:
    from .evaluate import everything
    from .model import load
    from .report import read_log, table
    from .speed import measure_times

    result = {"speed": measure_times(model), **everything(load(model))}
    (work / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    RESULT.write_text(table(result, read_log(work / "log.jsonl")), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def _process(process: int, arguments: argparse.Namespace, seconds: float, log: Log) -> None:
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "latents":
        from .latents import path, write

        if path(arguments.work, process).exists():
            return
        share = arguments.samples // arguments.processes // 2
        write(arguments.work, process, arguments.seed, share, share, log)
    else:
        from .dit import train

        train(arguments.work, process, arguments.processes, seconds, arguments.seed, log, arguments.pictures or 60)
