"""What this library needs of other packages, as whoever installed it was told: for the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from .npu_setup import release


DISTRIBUTION = "deepgen"
REQUIREMENTS = Path(__file__).absolute().parents[1] / "requirements.txt"


def requirements(path: Path = REQUIREMENTS) -> dict[str, str]:
    """Each package that has to be there with the versions that fit, as in ``{"diffusers": ">=0.33.0"}``.

    From the pack's ``requirements.txt``. A wheel has no such file; what it needs is in its metadata.
    """
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = _of_the_wheel()
    return dict(found for line in lines if (found := _parsed(line)) is not None)


def _of_the_wheel() -> list[str]:
    """Without those of the extras: which of them the user asked for is not recorded."""
    try:
        return [line for line in requires(DISTRIBUTION) or () if not re.search(r";.*\bextra\b", line)]
    except PackageNotFoundError:
        return []


def _parsed(line: str) -> tuple[str, str] | None:
    """The name and the versions of a requirement; None for a comment, an option, or one for other machines."""
    line = re.split(r"(?:^|\s)#", line)[0].strip()
    packaging = _packaging()
    if packaging is None:
        match = re.match(r"([\w.-]+)\s*(>=\s*[\w.]+)?\s*(?:;|$)", line)
        return (match[1], match[2] or "") if match else None
    try:
        requirement = packaging.requirements.Requirement(line)
    except packaging.requirements.InvalidRequirement:
        return None
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    return requirement.name, str(requirement.specifier)


def fits(installed: str, versions: str) -> bool:
    """Whether an installed version is among those. One before its release, such as 0.33.0.dev0, counts as that."""
    packaging = _packaging()
    if packaging is None:
        oldest = versions.removeprefix(">=").strip()
        return (release(installed) or ()) >= (release(oldest) or ())
    try:
        version = packaging.version.Version(installed)
    except packaging.version.InvalidVersion:
        return True  # somebody's own build
    allowed = packaging.specifiers.SpecifierSet(versions)
    return any(allowed.contains(one, prereleases=True) for one in (version, version.base_version))


def _packaging() -> Any:
    """The library that knows all forms of a requirement. transformers brings it; without it, lower bounds are read."""
    try:
        import packaging.requirements
        import packaging.specifiers
        import packaging.version
    except ImportError:
        return None
    return packaging
