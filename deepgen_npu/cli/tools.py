"""The commands ``doctor``, ``bench`` and ``verify`` of ``python -m deepgen_npu``.

Results go to stdout and are Markdown or JSON; progress goes to stderr. torch is imported only by what needs it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks, dtypes
from ..checkpoint.prompt_check import check_prompts_for
from ..errors import UsageError
from . import options
from .options import DEFAULT_PROMPT, add_model_option, add_placement_options, add_run_options


if TYPE_CHECKING:
    from ..tools.compare import Difference

# More runs do not make a median any better.
_MAX_RUNS = 1000
_RANDOM_SIZES = ("tiny", "benchmark", "published")
# A reference says them.
_OF_THE_RUN = ("prompt", "height", "width", "seed", "num_inference_steps", "guidance_scale", "references")


def add_commands(commands: Any) -> None:
    """Register the commands with those of `cli`."""
    doctor = commands.add_parser(
        "doctor",
        help="tell what this machine has, what is wrong with it and how to mend that",
        description="Exit status: 0 without problems, 1 with problems, 2 for a wrong command line.",
    )
    doctor.add_argument(
        "--device",
        type=options.device("--device", automatic=False),
        help="a device that has to be there: npu, npu:N, cuda, cuda:N or cpu",
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor)

    bench = commands.add_parser("bench", help="measure memory and time on this machine")
    _add_options(bench)
    bench.add_argument(
        "--runs",
        type=options.whole("--runs", 1, _MAX_RUNS),
        default=5,
        help="runs after the one for warming up (default: %(default)s)",
    )
    bench.add_argument("--json", action="store_true", help="for programs: also every single run")
    bench.set_defaults(run=_bench)

    verify = commands.add_parser(
        "verify",
        help="check that runs repeat, or compare devices, machines or pictures",
        description="Without --against, --pictures, --save or --compare: two runs on one device, which have to be "
        "identical. Exit status: 0 when all is as asked, 1 when it is not, 2 for a wrong command line.",
    )
    modes = verify.add_mutually_exclusive_group()
    add = modes.add_argument
    add(
        "--against",
        metavar="DEVICE",
        type=options.device("--against"),
        help="compare with another device of this machine, from the same noise",
    )
    add(
        "--pictures",
        nargs=2,
        metavar="FILE",
        type=options.path("--pictures"),
        help="compare two pictures as they are shown; no model is run",
    )
    add(
        "--save",
        metavar="DIR",
        type=options.path("--save"),
        help="write a reference (latents, picture, settings, versions) to a new folder",
    )
    add(
        "--compare",
        metavar="DIR",
        type=options.path("--compare"),
        help="repeat the run of a reference, whose settings are used, and compare with it",
    )
    _add_options(verify)
    add = verify.add_argument
    add("--against_dtype", choices=dtypes.CHOICES[1:], help="precision on the other device (default: the same)")
    add(
        "--max_difference",
        type=options.number("--max_difference", 0, 255),
        metavar="N",
        help="status 1 when any pixel differs by more (of 255)",
    )
    add(
        "--min_psnr",
        type=options.number("--min_psnr", 0, 1000),
        metavar="DB",
        help="status 1 when pictures are less alike",
    )
    verify.set_defaults(run=_verify, parser=verify)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    add = parser.add_argument
    add(
        "--random-weights",
        "--random_weights",
        nargs="?",
        const="published",
        choices=_RANDOM_SIZES,
        help="random weights instead of a model's files: tiny, benchmark (a sixth of the published size) or "
        "published (the default: 6.7 billion, 14 GB in bfloat16)",
    )
    add("--prompt", default=DEFAULT_PROMPT, help="(default: %(default)r)")
    add(
        "--references",
        type=options.whole("--references", 0, checks.MAX_REFERENCES),
        default=0,
        metavar="N",
        help="edit N made-up pictures (default: generate)",
    )
    add_run_options(parser)
    add_placement_options(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from ..tools import doctor

    found = doctor.inspect_host(arguments.device)
    print(doctor.as_json(found) if arguments.json else doctor.as_text(found))
    return 0 if found.healthy else 1


def _bench(arguments: argparse.Namespace) -> None:
    from ..tools import bench, doctor
    from ..tools.specs import DeviceSpec, ModelSpec, header, name_of

    place = DeviceSpec.of(arguments)
    model = ModelSpec.open(arguments)
    settings = model.settings(arguments)
    _say(f"Measuring {model.name} on {place}: {settings}")
    pipe, seconds = model.load(place)
    pipe.set_progress_bar_config(disable=True)  # drawing it would be measured

    def tell(number: int) -> None:
        _say(f"Run {number} of {arguments.runs} ..." if number else "Warming up ...")

    result = bench.measure(pipe, place.device, settings, arguments.runs, seconds, tell)
    if not arguments.json:
        print(header(Device=place, Model=model.name, Run=settings))
        print(bench.as_markdown(result))
        return
    facts = {
        "versions": doctor.versions(),
        "device": {"device": str(place.device), "name": name_of(place.device)},
        "model": model.name,
        "dtype": dtypes.dtype_name(place.dtype),
        "offload": place.offload,
        "capture_graph": place.capture_graph,
        "text_encoder_device": place.text_encoder_device,
    }
    print(json.dumps({**facts, **result.as_dict()}, indent=2))


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.against_dtype and not arguments.against:
        raise UsageError("--against_dtype is the precision on the device of --against, which was not given.")
    if arguments.save and not (arguments.max_difference is None and arguments.min_psnr is None):
        raise UsageError("--max_difference and --min_psnr need something to compare; --save only writes.")
    from ..tools.compare import require_scikit_image

    require_scikit_image()
    if arguments.pictures:
        return _verify_pictures(arguments)
    if arguments.save:
        return _save(arguments)
    if arguments.compare:
        return _compare(arguments)
    return _verify_runs(arguments)


def _verify_pictures(arguments: argparse.Namespace) -> int:
    from ..image_files import open_image
    from ..tools import doctor
    from ..tools.compare import compare_pictures

    names = arguments.pictures
    difference = compare_pictures(*(open_image(Path(name).expanduser(), "--pictures") for name in names))
    versions = ", ".join(f"{name} {number}" for name, number in doctor.versions().items())
    print(f"- Versions: {versions}\n- First: {Path(names[0]).name}\n- Second: {Path(names[1]).name}\n")
    return _conclude({"pictures": difference}, arguments)


def _verify_runs(arguments: argparse.Namespace) -> int:
    """Two runs on one device, or one on each of two."""
    from dataclasses import replace

    from ..devices import resolve_device, resolve_dtype
    from ..tools.compare import compare_latents, compare_pictures
    from ..tools.runs import run
    from ..tools.specs import DeviceSpec, ModelSpec, header, release

    place = DeviceSpec.of(arguments)
    other = place
    if arguments.against:
        device = resolve_device(arguments.against)
        dtype = resolve_dtype(arguments.against_dtype or place.dtype, device)
        other = DeviceSpec(device, dtype)
        if other == replace(place, offload=False, capture_graph=False, text_encoder_device=None):
            raise UsageError(f"--against {arguments.against} is the same device; another one is wanted.")
    model = ModelSpec.open(arguments)
    settings = model.settings(arguments)
    _say(f"Running {model.name} on {place}: {settings}")
    pipe, _ = model.load(place)
    latents, picture = run(pipe, settings)
    if other is not place:
        del pipe
        release(place.device)
        _say(f"Running it on {other} ...")
        pipe, _ = model.load(other)
    else:
        _say("Running it again ...")
    latents_again, picture_again = run(pipe, settings)
    rows = {
        "picture": compare_pictures(picture, picture_again),
        "latents": compare_latents(latents, latents_again),
    }
    facts = {"Device": place, "Against": other} if arguments.against else {"Device": place}
    print(header(**facts, Model=f"{model.name}, fingerprint {model.fingerprint()[:12]}", Run=settings))
    return _conclude(rows, arguments, identical=not arguments.against)


def _save(arguments: argparse.Namespace) -> int:
    from ..tools import doctor
    from ..tools.baseline import Baseline, rehearse
    from ..tools.runs import run
    from ..tools.specs import DeviceSpec, ModelSpec, header

    folder = Path(arguments.save).expanduser()
    rehearse(folder)
    place = DeviceSpec.of(arguments)
    model = ModelSpec.open(arguments)
    settings = model.settings(arguments)
    rehearse(folder, settings)
    _say(f"Running {model.name} on {place}: {settings}")
    pipe, _ = model.load(place)
    latents, picture = run(pipe, settings)
    machine = {"device": str(place), **doctor.versions()}
    fingerprint = model.fingerprint()
    reference = Baseline(latents, picture, settings, model.name, fingerprint, dtypes.dtype_name(place.dtype), machine)
    saved, trouble = reference.save_somewhere(folder)
    if trouble is not None:
        raise UsageError(f"{folder} cannot be written ({trouble}); the reference is at {saved}")
    print(header(Device=place, Model=f"{model.name}, fingerprint {fingerprint[:12]}", Run=settings))
    print(f"Reference saved at: {folder}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from ..tools.baseline import Baseline
    from ..tools.compare import compare_latents, compare_pictures
    from ..tools.runs import run
    from ..tools.specs import DeviceSpec, ModelSpec, header

    for name in _OF_THE_RUN:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise UsageError(f"--{name} is taken from the reference of --compare; leave it out.")
    reference = Baseline.load(Path(arguments.compare).expanduser())
    if arguments.dtype == "auto":
        arguments.dtype = reference.dtype
    place = DeviceSpec.of(arguments)
    model = ModelSpec.open(arguments)
    fingerprint = model.fingerprint()
    if fingerprint != reference.fingerprint:
        raise UsageError(
            f"The reference was made with another model: {reference.model}, fingerprint "
            f"{reference.fingerprint[:12]}; {model.name} has {fingerprint[:12]}. Name that model by --model_path."
        )
    settings = reference.settings
    check_prompts_for(model.checkpoint, settings.prompt, "", editing=settings.references > 0)
    wanted = model.latent_shape(settings)
    if tuple(reference.latents.shape) != wanted:
        raise UsageError(
            f"The reference in {arguments.compare} has latents of the shape {list(reference.latents.shape)}; "
            f"{list(wanted)} is wanted for its settings."
        )
    _say(f"Running {model.name} on {place}: {reference.settings}")
    pipe, _ = model.load(place)
    latents, picture = run(pipe, reference.settings)
    rows = {
        "picture": compare_pictures(picture, reference.picture),
        "latents": compare_latents(latents, reference.latents),
    }
    there = dict(reference.machine)
    made_on = f"{there.pop('device', 'unknown')}; {', '.join(f'{name} {number}' for name, number in there.items())}"
    name = f"{model.name}, fingerprint {fingerprint[:12]}"
    print(header(Device=place, Reference=options.one_line(made_on), Model=name, Run=reference.settings))
    return _conclude(rows, arguments)


def _conclude(rows: dict[str, Difference], arguments: argparse.Namespace, identical: bool = False) -> int:
    """Print the table and what follows from it; the exit status."""
    from ..tools.compare import as_markdown

    failures = []
    pictures = next(iter(rows.values()))
    if identical and not all(difference.identical for difference in rows.values()):
        failures.append("the two runs are not identical")
    # What cannot be compared (NaN) is not within a limit.
    if arguments.max_difference is not None and not pictures.largest <= arguments.max_difference:
        failures.append(f"pixels differ by {pictures.largest:g}, more than {arguments.max_difference:g}")
    psnr = math.nan if pictures.psnr is None else pictures.psnr
    if arguments.min_psnr is not None and not psnr >= arguments.min_psnr:
        failures.append(f"the PSNR is {psnr:.2f} dB, less than {arguments.min_psnr:g}")
    print(as_markdown(rows))
    asked = identical or arguments.max_difference is not None or arguments.min_psnr is not None
    if failures:
        print(f"\nFailed: {'; '.join(failures)}.")
    elif asked:
        print("\nPassed.")
    return 1 if failures else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
