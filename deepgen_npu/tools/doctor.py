"""``python -m deepgen_npu doctor``: what this machine has, what is wrong with it, and how to fix that.

torch is never imported in this process: `probe` tries it in another, and its error is one of the findings.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__, npu_setup, npu_versions
from ..checks import must_be
from ..formatting import format_bytes
from ..npu_setup import package_version
from ..problem import Problem
from ..requirements import fits, requirements
from .probe import probe


PACKAGES = (
    "torch",
    "torch_npu",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "einops",
    "safetensors",
    "huggingface_hub",
    "modelscope",
    "requests",
    "numpy",
    "Pillow",
    "scikit-image",
)
"""Packages whose versions are reported: those of the adaptation report, and others that affect results."""

OLDEST_PYTHON = (3, 10)


@dataclass(frozen=True)
class Finding:
    """One line of the report, and its fix.

    Attributes:
        level: ``problem`` (it will not work) or ``advice`` (it would work better).
        what: What was found.
        fix: The command that fixes it; where there is none, a sentence about what to do.
    """

    level: str
    what: str
    fix: str


@dataclass
class Report:
    """Everything that was found, ready for JSON.

    Attributes:
        deepgen, python, system, processor: Versions and names of what runs this.
        packages: Installed versions of `PACKAGES`; None for a missing one.
        cann, driver: Installed releases; None where not found.
        pair: Whether torch_npu and CANN belong together, in words; None where one of them is not there.
        cards: Device files of NPUs.
        environment: Values of `npu_setup.VARIABLES`; None for unset ones.
        wanted: The device that has to exist.
        devices: What torch found: ``device``, ``name``, ``free`` and ``total`` bytes, ``error``, and the ``dtype``
            that ``auto`` is there, with its reason in ``why``; None where that is not known.
        torch_error: Why torch does not load; None when it does.
        findings: Problems and advice.
    """

    deepgen: str
    python: str
    system: str
    processor: str
    packages: dict[str, str | None]
    cann: str | None
    driver: str | None
    cards: list[str]
    environment: dict[str, str | None]
    pair: str | None = None
    wanted: str | None = None
    devices: list[dict[str, Any]] = field(default_factory=list)
    torch_error: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def lacks_npu(self) -> bool:
        """Whether an NPU is wanted, or there is one, and torch does not find it."""
        needed = bool(self.cards) or (self.wanted or "").startswith("npu")
        return needed and not self.has_device("npu")

    @property
    def healthy(self) -> bool:
        """Whether no problem was found."""
        return not any(finding.level == "problem" for finding in self.findings)

    def has_device(self, kind: str) -> bool:
        """Whether torch found a device of a kind, ``npu`` or ``cuda``, or that very one, ``npu:1``."""
        return any(kind in (found["device"], found["device"].partition(":")[0]) for found in self.devices)


def inspect_host(
    wanted: str | None = None, environment: Mapping[str, str] | None = None, root: Path = Path("/")
) -> Report:
    """Look at this machine.

    Args:
        wanted: A device that has to exist: ``npu``, ``npu:1``, ``cuda``, ``cuda:1`` or ``cpu``. With None no device
            is missed, unless there is a card that torch does not find.
        environment: Instead of the process's own.
        root: Instead of the root of the file system.

    Raises:
        ValueError: For a device of another name.
    """
    if wanted is not None and not re.fullmatch(r"(npu|cuda)(:\d+)?|cpu", wanted):
        raise ValueError(must_be("device", "npu, npu:N, cuda, cuda:N or cpu", wanted))
    environment = os.environ if environment is None else environment
    found = Report(
        deepgen=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(root),
        packages={name: package_version(name) for name in PACKAGES},
        cann=npu_setup.cann_version(environment, root),
        driver=npu_setup.driver_version(root),
        cards=npu_setup.cards(root),
        environment={name: environment.get(name) for name in npu_setup.VARIABLES},
        wanted=wanted,
    )
    found.pair = npu_versions.described(found.packages["torch_npu"], found.cann)
    if found.packages["torch"] is not None:
        found.devices, found.torch_error = probe(environment)
    found.findings = list(findings(found, environment, root))
    return found


def processor(root: Path = Path("/")) -> str:
    """The processor's name, which Python itself does not know on Linux."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{name[1].strip() if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions(environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> dict[str, str]:
    """Installed versions of everything that affects results and times, for the lines above a table."""
    environment = os.environ if environment is None else environment
    named = {"deepgen_npu": __version__, "Python": platform.python_version()}
    named |= {name: package_version(name) or "" for name in PACKAGES}
    named |= {"CANN": npu_setup.cann_version(environment, root) or ""}
    named |= {"Ascend driver": npu_setup.driver_version(root) or ""}
    return {name: number for name, number in named.items() if number}


def set_variables(names: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of the named environment variables that are set."""
    environment = os.environ if environment is None else environment
    return {name: environment[name] for name in names if name in environment}


# What is wrong


def findings(found: Report, environment: Mapping[str, str], root: Path = Path("/")) -> Iterator[Finding]:
    """Problems, the most important first, then advice.

    Args:
        found: What this machine has.
        environment: Variables of the process.
        root: Of the file system.
    """
    problems = [*_of_python(found), *_of_host(found, environment, root), *_of_torch(found, environment, root)]
    if not any(problem.fix.startswith("pip install -r") for problem in problems):  # which installs these, too
        problems += _of_packages(found)
    problems += _of_devices(found, environment)
    yield from (Finding("problem", *problem) for problem in problems)
    torch, torch_npu = found.packages["torch"], found.packages["torch_npu"]
    if torch_npu is None:
        return
    if not problems and not found.has_device("npu"):
        yield Finding("advice", *npu_setup.no_card(environment, found.cards, found.driver))
    if not problems and (advice := npu_versions.not_a_pair(torch, torch_npu, found.cann, "compatible")):
        yield Finding("advice", *advice)
    yield from (Finding("advice", *advice) for advice in npu_setup.advice(environment))


def _of_python(found: Report) -> Iterator[Problem]:
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Problem(f"Python must be {oldest} or later, got {found.python}", f"install Python {oldest} or later")


def _of_host(found: Report, environment: Mapping[str, str], root: Path) -> Iterator[Problem]:
    """What an NPU needs below Python: each part needs the one before. A torch_npu that loads has found its CANN."""
    torch, torch_npu = found.packages["torch"], found.packages["torch_npu"]
    loads = None not in (torch, torch_npu) and found.torch_error is None
    if not found.lacks_npu or loads:
        return
    if found.driver is None:
        yield npu_setup.no_driver(found.cards)
    if not _has_cann(found, environment, root):
        yield Problem(npu_setup.NOWHERE, npu_setup.install_cann(torch_npu))


def _has_cann(found: Report, environment: Mapping[str, str], root: Path) -> bool:
    return found.cann is not None or bool(npu_setup.cann_folders(environment, root))


def _of_torch(found: Report, environment: Mapping[str, str], root: Path) -> Iterator[Problem]:
    torch, torch_npu = found.packages["torch"], found.packages["torch_npu"]
    if torch is None:
        if found.lacks_npu and torch_npu is None:
            what = "torch and torch_npu are not installed in this Python"
            yield Problem(what, npu_versions.how_to_install(None, found.cann))
        else:
            exact = ".".join(map(str, npu_versions.release(torch_npu) or ()))
            install = f"pip install torch=={exact}" if exact else "pip install torch  # in the build for this machine"
            yield Problem("torch is not installed in this Python", install)
    elif torch_npu is None:
        if found.lacks_npu:
            card = f", but there is {', '.join(found.cards)}" if found.cards else ""
            yield Problem(f"{npu_setup.NOT_INSTALLED}{card}", npu_versions.how_to_install(torch, found.cann))
        if found.torch_error is not None:
            last = found.torch_error.splitlines()[-1]
            yield Problem(f"torch does not load ({last})", "install torch again, in the build for this machine")
    else:
        yield from _of_torch_npu(found, environment, root, torch, torch_npu)


def _of_torch_npu(
    found: Report, environment: Mapping[str, str], root: Path, torch: str, torch_npu: str
) -> Iterator[Problem]:
    problem = npu_versions.mismatch(torch, torch_npu, found.cann) or npu_setup.conflict(environment, torch_npu)
    if found.torch_error is not None:
        problem = npu_setup.why_not_loaded(found.torch_error, environment, root, torch, torch_npu)
        if problem.what.startswith(npu_setup.NO_CANN) and found.lacks_npu and not _has_cann(found, environment, root):
            problem = None  # already reported
    apart = npu_versions.not_a_pair(torch, torch_npu, found.cann, "apart")
    if apart is not None and npu_versions.release(torch) == npu_versions.release(torch_npu):
        yield apart
    if problem is not None and problem != apart:
        yield problem


def _of_packages(found: Report) -> Iterator[Problem]:
    for name, versions in requirements().items():
        installed = found.packages.get(name) or package_version(name)
        if installed is None:
            yield Problem(f"{name} is not installed in this Python", f'pip install "{name}{versions}"')
        elif not fits(installed, versions):
            yield Problem(f"{name} must be {versions}, got {installed}", f'pip install "{name}{versions}"')


def _of_devices(found: Report, environment: Mapping[str, str]) -> Iterator[Problem]:
    if found.packages["torch"] is None or found.torch_error is not None:
        return  # already reported
    for device in found.devices:
        if device["error"]:
            kind = device["device"].partition(":")[0]
            yield Problem(f"{device['device']} does not answer: {device['error']}", _LISTS_CARDS[kind])
    kind = (found.wanted or "cpu").partition(":")[0]
    existing = ", ".join(device["device"] for device in found.devices)
    if (kind == "npu" or found.cards) and not found.has_device("npu"):
        if found.packages["torch_npu"] is not None:  # otherwise already reported
            yield npu_setup.no_card(environment, found.cards, found.driver)
    elif kind == "cuda" and not found.has_device("cuda"):
        yield Problem(f"{found.wanted} does not exist: torch finds no CUDA device", _LISTS_CARDS[kind])
    elif kind != "cpu" and not found.has_device(found.wanted or ""):
        yield Problem(f"{found.wanted} does not exist: this machine has {existing}", "choose one of these")


_LISTS_CARDS = {
    "npu": "npu-smi info  # does it list the card as OK?",
    "cuda": "nvidia-smi  # does it list the card, and is this the CUDA build of torch?",
}


# Forms


def as_text(found: Report) -> str:
    """For reading, and for pasting into an issue."""
    lines = [f"deepgen_npu {found.deepgen}, Python {found.python} on {found.system}", "", "Versions"]
    lines += _table([(name, installed or "-") for name, installed in found.packages.items()])
    lines += _table([("CANN", found.cann or "-"), ("torch_npu for CANN", found.pair or "-")])
    lines += _table([("Ascend driver", found.driver or "-")])
    lines += ["", "Devices"]
    for device in found.devices:
        lines += _table([(device["device"], _memory(device))])
        lines += _table([("", f"dtype auto is {device['dtype']}: {device['why']}")]) if device.get("dtype") else []
    if found.cards:
        lines += _table([("card files", ", ".join(found.cards))])
    lines += _table([("cpu", found.processor)])
    lines += ["", "Environment"]
    lines += _table([(name, value if value is not None else "-") for name, value in found.environment.items()])
    lines += [""]
    for finding in found.findings:
        fix = [f"    {line.strip()}" for line in finding.fix.splitlines() if line.strip()]
        lines += [f"{finding.level.upper()}: {finding.what}", *fix]
    count = sum(finding.level == "problem" for finding in found.findings)
    order = " Fix them in this order: each may need those above it." if count > 1 else ""
    lines += [f"{count} problem(s) found.{order}" if count else "No problem was found."]
    return "\n".join(lines)


def as_json(found: Report) -> str:
    """For programs: the fields of `Report`, and ``healthy``."""
    return json.dumps({**asdict(found), "healthy": found.healthy}, indent=2)


def _memory(device: Mapping[str, Any]) -> str:
    if device["free"] is None:
        return f"{device['name'] or 'unknown'}, memory unknown"
    return f"{device['name']}, {format_bytes(device['free'])} of {format_bytes(device['total'])} free"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{max(width, 22)}}  {value}" for name, value in rows]
