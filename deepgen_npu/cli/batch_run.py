"""The command ``batch``: from its options to its exit status."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..checkpoint.folder import Checkpoint, resolve_model
from ..errors import UsageError
from ..formatting import counted
from ..locations import downloaded_model
from ..lora.file import check_choices
from ..tools import doctor
from ..tools.batch.contact_sheet import save_contact_sheet
from ..tools.batch.folder import OutputFolder
from ..tools.batch.local import Local
from ..tools.batch.progress import Checking, Progress, faults, forecast
from ..tools.batch.rows import Defaults
from ..tools.batch.run import Drawer, Tally
from ..tools.batch.run import run as run_batch
from ..tools.batch.survey import BAD, KEPT_ERROR, TO_MAKE, Survey, Surveyor
from ..tools.fingerprint import fingerprint
from .options import AUTO


if TYPE_CHECKING:
    from ..tools.batch.drawing import Painter


def run(arguments: argparse.Namespace) -> int:
    """Check the rows, draw what is left to do, and report; the exit status.

    Raises:
        UsageError, FileError, CheckpointError, LoraError, DeviceError: For what ends the whole run.
        OSError: When an image cannot be written.
    """
    if arguments.worker_resources is not None and not _uses_ray(arguments):
        raise UsageError("--worker_resources needs --workers or --address: add one.")
    if _uses_ray(arguments) and ":" in arguments.device:
        requirement = "npu, cuda, cpu or auto with --workers and --address, where Ray chooses the card"
        raise UsageError(checks.must_be("--device", requirement, arguments.device))
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path or downloaded_model()))
    check_choices(arguments.lora, checkpoint.configs["transformer"])
    folder = OutputFolder(Path(arguments.output).expanduser(), arguments.shard)
    surveyor = _surveyor(arguments, checkpoint, folder)
    with folder.locked() if not arguments.dry_run else contextlib.nullcontext():
        if not arguments.dry_run:
            folder.clean()
        checking = Checking()
        try:
            survey = surveyor.survey(checking.add)
        finally:
            checking.close()
        print(forecast(survey, folder.path, _devices(arguments)))
        if arguments.dry_run:
            if survey.errors:
                print(faults(survey))
            return 1 if survey.count(BAD, KEPT_ERROR) else 0
        tally = _draw(arguments, checkpoint, surveyor, survey)
        if arguments.contact_sheet is not None:
            _contact_sheet(surveyor, arguments.contact_sheet)
    if tally.failed:
        print(f"{tally.failed:,} of {counted(survey.rows, 'row')} failed: {folder.manifest} says why.")
    return 1 if tally.failed else 0


def _surveyor(arguments: argparse.Namespace, checkpoint: Checkpoint, folder: OutputFolder) -> Surveyor:
    """The table, the defaults of its rows, and what decides about all images."""
    run = {
        "model": fingerprint(checkpoint, loras=arguments.lora),
        "dtype": arguments.dtype,
        "vae_tiling": arguments.vae_tiling,
    }
    defaults = Defaults(
        arguments.negative_prompt,
        arguments.seed,
        arguments.num_images,
        arguments.height,
        arguments.width,
        arguments.follow_input,
        arguments.keep_unchanged,
        arguments.num_inference_steps,
        arguments.guidance_scale,
        arguments.guidance_every,
    )
    table = Path(arguments.rows).expanduser()
    return Surveyor(table, defaults, checkpoint, folder, run, arguments.overwrite, arguments.keep_errors)


def _draw(arguments: argparse.Namespace, checkpoint: Checkpoint, surveyor: Surveyor, survey: Survey) -> Tally:
    """Do the work, with a line of progress, and say what was done."""
    folder, tally, progress = surveyor.folder, Tally(), Progress(survey)
    drawer = _drawer(arguments, checkpoint, folder, surveyor.run, progress.tell)
    facts = _facts(arguments, checkpoint, surveyor)
    # Of a run that draws nothing there is nothing to say: what drew the images stays.
    tells = bool(survey.count(TO_MAKE)) or not folder.facts.exists()
    if tells:
        folder.write_facts(facts)
    try:
        run_batch(surveyor, survey, drawer, tally, lambda entry: progress.add(entry, drawer.state), progress.tell)
    except KeyboardInterrupt as stopped:
        done = f"Stopped after {tally.finished + tally.failed:,} of {counted(survey.rows, 'row')}"
        raise KeyboardInterrupt(f"{done}; the same command goes on.") from stopped
    finally:
        progress.close()
        facts |= {"ended": _now(), "workers": drawer.workers, "rows": survey.rows, "done": vars(tally)}
        if tells:
            with contextlib.suppress(OSError):  # a full disk has been told already
                folder.write_facts(facts)
    print(tally)
    return tally


def _facts(arguments: argparse.Namespace, checkpoint: Checkpoint, surveyor: Surveyor) -> dict[str, Any]:
    """What ``run.json`` says before the first image."""
    defaults = vars(surveyor.defaults)
    return {
        "started": _now(),
        "table": str(surveyor.table),
        "model": checkpoint.folder.name,
        "loras": [one.as_dict() for one in arguments.lora],
        "settings": dict(surveyor.run),
        "defaults": defaults,
        "device": arguments.device,
        "versions": doctor.versions(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _uses_ray(arguments: argparse.Namespace) -> bool:
    return arguments.address is not None or arguments.workers is not None


def _devices(arguments: argparse.Namespace) -> int | None:
    """How many draw at once; None if only the cluster knows."""
    if not _uses_ray(arguments):
        return 1
    return _worker_count(arguments)


def _worker_count(arguments: argparse.Namespace) -> int | None:
    """Of workers of Ray; None for as many as there is room for."""
    return None if arguments.workers in (None, AUTO) else arguments.workers


def _drawer(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint,
    folder: OutputFolder,
    run: Mapping[str, Any],
    tell: Callable[[str], None],
) -> Drawer:
    """What draws: this process, or workers of Ray."""
    settings = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "offload": arguments.offload,
        "text_encoder_device": arguments.text_encoder_device,
        "capture_graph": arguments.capture_graph,
        "disable_mmap": arguments.disable_mmap,
        "vae_tiling": arguments.vae_tiling,
        # Workers have another working folder.
        "loras": [(os.path.abspath(one.path.expanduser()), one.strength) for one in arguments.lora],
        "facts": dict(run),
        "model": os.path.abspath(checkpoint.folder),
        "output": os.path.abspath(folder.path),
    }
    if not _uses_ray(arguments):

        def load() -> Painter:
            from ..tools.batch.loading import load_painter

            return load_painter(settings)

        return Local(load)
    from ..tools.batch.cluster import Cluster, ClusterSettings

    count = _worker_count(arguments)
    cluster = ClusterSettings(
        count, arguments.address, arguments.device, arguments.worker_resources, arguments.attempts
    )
    return Cluster(cluster, settings, folder, tell)


def _contact_sheet(surveyor: Surveyor, count: int) -> None:
    """Some of the images that are there, evenly from all rows."""
    target = surveyor.folder.path / "contact_sheet.jpg"
    try:
        images = surveyor.images(count)
        if not images:
            print("There are no images for a contact sheet yet.")
            return
        save_contact_sheet(target, images)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt("Stopped before the contact sheet was written; all images are.") from stopped
    print(f"Contact sheet: {target} ({counted(len(images), 'image')})")
