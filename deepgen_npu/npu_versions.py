"""Which CANN, torch and torch_npu belong together. Nothing here imports torch."""

from __future__ import annotations

import re
import sys
from typing import Literal, NamedTuple

from .problem import Problem
from .requirements import REQUIREMENTS


class Release(NamedTuple):
    """A release of TorchNPU.

    Attributes:
        number: Its own number, from which those of its packages do not follow.
        cann: The CANN it is built for; ``x`` stands for all numbers.
        python: The newest Python for which most of its packages exist; the oldest is 3.10 or older.
        builds: Versions of its packages, newest torch first. The first three numbers are those of the torch.
    """

    number: str
    cann: str
    python: tuple[int, int]
    builds: tuple[str, ...]


RELEASES = tuple(
    Release(number, cann, (3, python), tuple(builds.split()))
    for number, cann, python, builds in (
        ("26.2.0", "9.2.0", 14, "2.14.0 2.13.0 2.12.0.post3 2.11.0.post3 2.10.0.post7 2.9.0.post9 2.7.1.post11"),
        ("26.1.1", "9.1.x", 13, "2.12.0.post2 2.11.0.post2 2.10.0.post6 2.9.0.post8 2.7.1.post10"),
        ("26.1.0", "9.1.0", 13, "2.12.0 2.11.0 2.10.0.post4 2.9.0.post6 2.7.1.post8"),
        ("26.0.0", "9.0.0", 13, "2.10.0 2.9.0.post2 2.8.0.post4 2.7.1.post4"),
        ("7.3.0", "8.5.0", 12, "2.9.0 2.8.0.post2 2.7.1.post2 2.6.0.post5"),
        ("7.2.0", "8.3.RC1", 11, "2.8.0 2.7.1 2.6.0.post3"),
        ("7.1.0", "8.2.RC1", 11, "2.6.0 2.5.1.post1"),
        ("7.0.0", "8.1.RC1", 11, "2.5.1 2.4.0.post4"),
    )
)
"""Ascend's table of versions, newest first (github.com/Ascend/pytorch: COMPATIBILITY.en.md @b48e648; for 26.1.1
docker/OVERVIEW.md @0ae7acf, for 26.2.0 docs/zh/release_notes.md @04937a1, for 2.10.0 docker/supported_tags.md
@7a50c52). Packages that are not in it, such as 2.9.1, do not say for which CANN they are built. Pythons are those of
the wheels on PyPI, which are fewer than COMPATIBILITY.en.md names."""

TOGETHER = ((8, 5), (9, 0), (9, 1), (9, 2))
"""Releases of CANN, each of which works with the torch_npu of the others (release_notes.md @04937a1, the table of
compatibility: TorchNPU 7.3.x, 26.0.x, 26.1.x and 26.2.x with all four)."""

RECOMMENDED_CANN = "9.1.0"
"""For a machine without one: what COMPATIBILITY.en.md recommends, with torch 2.12.0."""


class Stack(NamedTuple):
    """Everything for a CANN, pinned.

    Attributes:
        file: A file of the pack. Its torch is that of the first build for this CANN.
        for_comfyui: Packages of this torch that ComfyUI imports.
    """

    file: str
    for_comfyui: str


STACKS: dict[tuple[int, ...], Stack] = {
    (8, 5): Stack("requirements-npu.txt", "torchvision==0.24.0 torchaudio==2.9.0"),
    (9, 1): Stack("requirements-npu-cann9.1.txt", "torchvision==0.27.0 torchaudio==2.11.0"),
}
"""By the first two numbers of the CANN. torchaudio ends with 2.11.0, which is for later releases of torch, too."""

OLDEST_TORCH = (2, 9)
"""See the extra ``run`` of pyproject.toml."""

PYTHON = sys.version_info[:2]

Pairing = Literal["pair", "compatible", "apart", "unknown"]


def release(number: str | None) -> tuple[int, ...] | None:
    """The first three numbers of a version: (2, 9, 0) of 2.9.0+cpu and of 2.9.0.post2."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", number or "")
    return tuple(int(part or 0) for part in match.groups()) if match else None


def _line(cann: str) -> tuple[int, ...]:
    """The first two numbers of a CANN: (8, 5) of 8.5.1, (8, 3) of 8.3.RC1."""
    match = re.match(r"(\d+)\.(\d+)", cann)
    return (int(match[1]), int(match[2])) if match else ()


def builds_for(cann: str) -> tuple[str, ...]:
    """All torch_npu built for a CANN, the one to take of each torch before others; empty where the table has none.

    8.5.1 has the builds of 8.5.0. 9.1.0 has builds of its own, and after them those of 9.1.x; 9.1.1 the other way
    round.
    """
    releases = [known for known in RELEASES if _line(known.cann) == _line(cann)]
    releases.sort(key=lambda known: not re.match(rf"{re.escape(known.cann)}\b", cann, re.IGNORECASE))
    return tuple(build for known in releases for build in known.builds)


def build_for(torch: str | None, cann: str) -> str | None:
    """The torch_npu for this torch and this CANN; None where there is none."""
    return next((build for build in builds_for(cann) if release(build) == release(torch)), None)


def cann_of(torch_npu: str) -> str | None:
    """The CANN for which a torch_npu is built; None for builds that are not in the table."""
    public = torch_npu.partition("+")[0]
    return next((known.cann for known in RELEASES if public in known.builds), None)


def cann_to_install(torch_npu: str | None = None) -> str:
    """The CANN for a machine without one: that of the installed torch_npu, else the recommended one."""
    return cann_of(torch_npu or "") or RECOMMENDED_CANN


def pairing(torch_npu: str, cann: str) -> Pairing:
    """Whether a torch_npu and a CANN belong together, work together, or neither; unknown outside of the table."""
    built_for, lines = cann_of(torch_npu), {_line(known.cann) for known in RELEASES}
    if built_for is None or (_line(cann) not in lines and not () < _line(cann) < min(lines)):
        return "unknown"
    if _line(built_for) == _line(cann):
        return "pair"
    return "compatible" if {_line(built_for), _line(cann)} <= set(TOGETHER) else "apart"


def described(torch_npu: str | None, cann: str | None) -> str | None:
    """`pairing` in words, for a table; None where one of the two is not there."""
    if torch_npu is None or cann is None:
        return None
    built_for = cann_of(torch_npu)
    if built_for is None:
        return f"unknown: torch_npu {torch_npu} is not in Ascend's table"
    return {
        "pair": f"yes, torch_npu {torch_npu} is built for CANN {built_for}",
        "compatible": f"no, but compatible: torch_npu {torch_npu} is built for CANN {built_for}",
        "apart": f"no: torch_npu {torch_npu} is built for CANN {built_for}",
        "unknown": f"unknown: CANN {cann} is not in Ascend's table, torch_npu {torch_npu} is built for {built_for}",
    }[pairing(torch_npu, cann)]


def mismatch(torch: str | None, torch_npu: str | None, cann: str | None) -> Problem | None:
    """The problem where these releases of torch and torch_npu do not belong together.

    A torch_npu is built for one torch and requires it (``torch==2.9.0.*``): the first three numbers are the same.
    What follows them (+cpu, .post2) does not matter.
    """
    if torch is None or torch_npu is None or release(torch) == release(torch_npu):
        return None
    return Problem(
        f"torch_npu {torch_npu} does not belong to torch {torch}: the first three numbers of both must be equal",
        how_to_install(torch, cann),
    )


def not_a_pair(
    torch: str | None, torch_npu: str | None, cann: str | None, kind: Literal["compatible", "apart"]
) -> Problem | None:
    """What to say of a torch_npu and a CANN whose `pairing` is this kind; None if it is another."""
    if torch_npu is None or cann is None or pairing(torch_npu, cann) != kind:
        return None
    verdict = {
        "compatible": "compatible by Ascend's release notes, but not the pair",
        "apart": "Ascend's release notes do not call them compatible",
    }[kind]
    what = f"torch_npu {torch_npu} is built for CANN {cann_of(torch_npu)}, this machine has CANN {cann}: {verdict}"
    return Problem(what, how_to_install(torch, cann))


def how_to_install(torch: str | None, cann: str | None) -> str:
    """The command that installs the torch_npu of a CANN, for this torch if it has one; else a sentence.

    Args:
        torch: Installed version.
        cann: Installed version; without it, the recommended one is assumed.
    """
    cann = cann or RECOMMENDED_CANN
    if build := build_for(torch, cann):
        return _no_wheel(build) or f"pip install torch_npu=={build}"
    numbers = release(torch)
    without = f"CANN {cann} has no torch_npu for torch {torch}"
    newest = next(iter(builds_for(cann)), None)
    if newest is not None and (release(newest) or ()) >= OLDEST_TORCH:
        return _no_wheel(newest) or f"{_stack(newest, cann)}{f'  # {without}' if numbers else ''}"
    if newest is None and _line(cann) > max(TOGETHER):
        exact = f'"torch_npu=={".".join(map(str, numbers))}.*"' if numbers else "torch_npu"
        return f"pip install {exact}  # or the build that its release notes name for CANN {cann}"
    oldest = ".".join(map(str, OLDEST_TORCH))
    return (
        f"Install CANN {RECOMMENDED_CANN} or 8.5.0: there is no torch_npu for CANN {cann} and torch {oldest} or later"
    )


def _no_wheel(torch_npu: str) -> str | None:
    """What to do where a build has no package for this Python."""
    newest = next(known.python for known in RELEASES if torch_npu in known.builds)
    if newest >= PYTHON:
        return None
    there, here = (".".join(map(str, numbers)) for numbers in (newest, PYTHON))
    return f"Make a virtual environment with Python {there}: PyPI has no torch_npu {torch_npu} for Python {here}"


def _stack(torch_npu: str, cann: str) -> str:
    """The command that installs a torch_npu with its torch: by a file of the pack, where there is one."""
    stack = STACKS.get(_line(cann))
    if stack is not None and REQUIREMENTS.with_name(stack.file).is_file():
        return f"pip install -r {stack.file} {stack.for_comfyui}"
    return f"pip install torch=={'.'.join(map(str, release(torch_npu) or ()))} torch_npu=={torch_npu}"
