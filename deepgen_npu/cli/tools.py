"""The commands ``doctor``, ``bench`` and ``verify`` of ``python -m deepgen_npu``.

Results go to stdout and are Markdown or JSON; progress goes to stderr. torch is imported only by what needs it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks, dtypes
from ..checkpoint.prompt_check import check_prompts_for
from ..errors import UsageError
from ..formatting import format_size
from ..quantization.formats import FORMATS
from ..tools.model_sizes import SIZES
from . import options
from .options import DEFAULT_PROMPT, add_lora_option, add_model_option, add_placement_options, add_run_options


if TYPE_CHECKING:
    from ..tools.compare import Difference

_MAX_RUNS = 1000
"""More runs do not improve a median."""


def add_commands(commands: Any) -> None:
    """Register the commands with those of `cli`."""
    doctor = commands.add_parser(
        "doctor",
        help="report the versions and devices of this machine, and each problem with its fix",
        description="Exit status: 0 without problems, 1 with problems, 2 for a wrong command line.",
    )
    doctor.add_argument(
        "--device",
        type=options.device("--device", automatic=False),
        help="a device that has to exist: npu, npu:N, cuda, cuda:N or cpu",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    bench = commands.add_parser("bench", help="measure memory and time on this machine")
    _add_options(bench)
    bench.add_argument(
        "--runs",
        type=options.integer("--runs", 1, _MAX_RUNS),
        default=5,
        help="runs after the warm-up (default: %(default)s)",
    )
    bench.add_argument("--json", action="store_true", help="print JSON, which includes every single run")
    bench.set_defaults(run=_bench)

    verify = commands.add_parser(
        "verify",
        help="check that runs are reproducible, or compare devices, machines or images",
        description="Without --against, --pictures, --save or --compare: two runs on one device, which have to be "
        "identical. Exit status: 0 when all checks pass, 1 when one fails, 2 for a wrong command line.",
    )
    modes = verify.add_mutually_exclusive_group()
    add = modes.add_argument
    add(
        "--against",
        metavar="DEVICE",
        type=options.device("--against"),
        help="compare with another device of this machine, with the same noise",
    )
    add(
        "--pictures",
        nargs=2,
        metavar="FILE",
        type=options.path("--pictures"),
        help="compare two image files; no model is run",
    )
    add(
        "--save",
        metavar="DIR",
        type=options.path("--save"),
        help="save the run (latents, image, settings, versions) to a new folder",
    )
    add(
        "--compare",
        metavar="DIR",
        type=options.path("--compare"),
        help="repeat a run that --save wrote, with its settings, and compare",
    )
    _add_options(verify)
    add = verify.add_argument
    add("--against_dtype", choices=dtypes.CHOICES[1:], help="precision on the other device (default: the same)")
    add(
        "--max_difference",
        type=options.number("--max_difference", 0, 255),
        metavar="N",
        help="exit status 1 when any pixel differs by more (of 255)",
    )
    add(
        "--min_psnr",
        type=options.number("--min_psnr", 0, 1000),
        metavar="DB",
        help="exit status 1 when the PSNR of the images is lower",
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
        choices=SIZES,
        help="random weights instead of a model: tiny, benchmark (a sixth of the published size) or published (the "
        "default: 6.7 billion parameters, 12.6 GiB in bfloat16)",
    )
    add("--format", choices=FORMATS, help="quantise the random weights; a model folder has a format of its own")
    add("--prompt", default=DEFAULT_PROMPT, help="(default: %(default)r)")
    add(
        "--references",
        type=options.integer("--references", 0, checks.MAX_REFERENCES),
        default=0,
        metavar="N",
        help="edit N synthetic images (default: generate)",
    )
    add_run_options(parser)
    add_lora_option(parser)
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

    def on_run(number: int) -> None:
        _say(f"Run {number} of {arguments.runs} ..." if number else "Warming up ...")

    result = bench.measure(pipe, place.device, settings, arguments.runs, seconds, on_run)
    if not arguments.json:
        print(header(Device=place, Model=model.name, Run=settings))
        print(bench.as_markdown(result))
        return
    facts = {
        "versions": doctor.versions(),
        "device": {"device": str(place.device), "name": name_of(place.device)},
        "model": model.name,
        "loras": [one.as_dict() for one in model.loras],
        "dtype": dtypes.dtype_name(place.dtype),
        "offload": place.offload,
        "capture_graph": place.capture_graph,
        "text_encoder_device": place.text_encoder_device,
        "disable_mmap": place.disable_mmap,
    }
    print(json.dumps({**facts, **result.as_dict()}, indent=2))


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.against_dtype and not arguments.against:
        raise UsageError("--against_dtype needs --against: name the device of that precision.")
    if arguments.save and not (arguments.max_difference is None and arguments.min_psnr is None):
        raise UsageError("--save compares nothing: leave --max_difference and --min_psnr out.")
    from ..tools.compare import require_scikit_image

    require_scikit_image()
    if arguments.pictures:
        return _verify_images(arguments)
    if arguments.save:
        return _save(arguments)
    if arguments.compare:
        return _compare(arguments)
    return _verify_runs(arguments)


def _verify_images(arguments: argparse.Namespace) -> int:
    from ..image_files import open_image
    from ..tools import doctor
    from ..tools.compare import compare_images

    names = arguments.pictures
    difference = compare_images(*(open_image(Path(name).expanduser(), "--pictures") for name in names))
    versions = ", ".join(f"{name} {number}" for name, number in doctor.versions().items())
    print(f"- Versions: {versions}\n- First: {Path(names[0]).name}\n- Second: {Path(names[1]).name}\n")
    return _conclude({"images": difference}, arguments)


def _verify_runs(arguments: argparse.Namespace) -> int:
    """Two runs on one device, or one on each of two."""
    from ..devices import resolve_device, resolve_dtype
    from ..tools.compare import compare_images, compare_latents
    from ..tools.runs import run
    from ..tools.specs import DeviceSpec, ModelSpec, header, release

    place = DeviceSpec.of(arguments)
    other = place
    if arguments.against:
        device = resolve_device(arguments.against)
        dtype = resolve_dtype(arguments.against_dtype or place.dtype, device)
        other = DeviceSpec(device, dtype, disable_mmap=place.disable_mmap)
        if other == replace(place, offload=False, capture_graph=False, text_encoder_device=None):
            raise UsageError(checks.must_be("--against", "another device than --device", arguments.against))
    model = ModelSpec.open(arguments)
    settings = model.settings(arguments)
    _say(f"Running {model.name} on {place}: {settings}")
    pipe, _ = model.load(place)
    latents, image = run(pipe, settings)
    if other is not place:
        del pipe
        release(place.device)
        _say(f"Running it on {other} ...")
        pipe, _ = model.load(other)
    else:
        _say("Running it again ...")
    latents_again, image_again = run(pipe, settings)
    rows = {
        "image": compare_images(image, image_again),
        "latents": compare_latents(latents, latents_again),
    }
    facts = {"Device": place, "Against": other} if arguments.against else {"Device": place}
    print(header(**facts, Model=f"{model.name}, fingerprint {model.fingerprint()[:12]}", Run=settings))
    return _conclude(rows, arguments, identical=not arguments.against)


def _save(arguments: argparse.Namespace) -> int:
    from ..files import save_somewhere
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
    latents, image = run(pipe, settings)
    machine = {"device": str(place), **doctor.versions()}
    fingerprint = model.fingerprint()
    baseline = Baseline(latents, image, settings, model.name, fingerprint, dtypes.dtype_name(place.dtype), machine)
    saved, trouble = save_somewhere(baseline.save, folder)
    if trouble is not None:
        raise UsageError(f"{folder} cannot be written ({trouble}); the run is at {saved}")
    print(header(Device=place, Model=f"{model.name}, fingerprint {fingerprint[:12]}", Run=settings))
    print(f"Run saved at: {folder}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from ..tools.baseline import Baseline
    from ..tools.compare import compare_images, compare_latents
    from ..tools.runs import RunSettings, run
    from ..tools.specs import DeviceSpec, ModelSpec, header

    for field in fields(RunSettings):
        if getattr(arguments, field.name) != arguments.parser.get_default(field.name):
            raise UsageError(f"--{field.name} and --compare cannot be combined: the saved run has its own.")
    baseline = Baseline.load(Path(arguments.compare).expanduser())
    if arguments.dtype == "auto":
        arguments.dtype = baseline.dtype
    place = DeviceSpec.of(arguments)
    model = ModelSpec.open(arguments)
    fingerprint = model.fingerprint()
    if fingerprint != baseline.fingerprint:
        raise UsageError(
            f"The run in {arguments.compare} was made with another model: {baseline.model}, fingerprint "
            f"{baseline.fingerprint[:12]}; {model.name} has {fingerprint[:12]}. Pass that model as --model_path, "
            "with its LoRAs."
        )
    settings = baseline.settings
    check_prompts_for(model.checkpoint, settings.prompt, "", editing=settings.references > 0)
    expected, found = list(model.latent_shape(settings)), list(baseline.latents.shape)
    if found != expected:
        size = format_size(settings.width, settings.height)
        raise UsageError(
            checks.must(f"The latents in {arguments.compare}", f"have the shape {expected} for {size}", found)
        )
    _say(f"Running {model.name} on {place}: {settings}")
    pipe, _ = model.load(place)
    latents, image = run(pipe, settings)
    rows = {
        "image": compare_images(image, baseline.image),
        "latents": compare_latents(latents, baseline.latents),
    }
    there = dict(baseline.machine)
    made_on = f"{there.pop('device', 'unknown')}; {', '.join(f'{name} {number}' for name, number in there.items())}"
    name = f"{model.name}, fingerprint {fingerprint[:12]}"
    print(header(Device=place, Baseline=options.one_line(made_on), Model=name, Run=settings))
    return _conclude(rows, arguments)


def _conclude(rows: dict[str, Difference], arguments: argparse.Namespace, identical: bool = False) -> int:
    """Print the table and the verdict; the exit status."""
    from ..tools.compare import as_markdown

    failures = []
    images = next(iter(rows.values()))
    if identical and not all(difference.identical for difference in rows.values()):
        failures.append("the two runs are not identical")
    # NaN is within no limit.
    if arguments.max_difference is not None and not images.largest <= arguments.max_difference:
        failures.append(f"pixels differ by {images.largest:g}, more than {arguments.max_difference:g}")
    psnr = math.nan if images.psnr is None else images.psnr
    if arguments.min_psnr is not None and not psnr >= arguments.min_psnr:
        failures.append(f"the PSNR is {psnr:.2f} dB, less than {arguments.min_psnr:g}")
    print(as_markdown(rows))
    limited = identical or arguments.max_difference is not None or arguments.min_psnr is not None
    if failures:
        print(f"\nFailed: {'; '.join(failures)}.")
    elif limited:
        print("\nPassed.")
    return 1 if failures else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
