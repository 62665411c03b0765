"""Other packages that this library needs, by the pack's ``requirements.txt`` or an installed wheel's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from .locations import PACK


DISTRIBUTION = "deepgen"
REQUIREMENTS = PACK / "requirements.txt"


def requirements(path: Path = REQUIREMENTS) -> dict[str, str]:
    """Each package that has to be there with the versions that fit, as in ``{"diffusers": ">=0.33.0"}``.

    Those of extras are not among them: which extras the user asked for is not recorded.
    """
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [line for line in _of_the_wheel() or () if not re.search(r";.*\bextra\b", line)]
    return dict(found for line in lines if (found := _parsed(line)) is not None)


def how_to_install(file: str = REQUIREMENTS.name, extras: str = "run") -> str:
    """The command that installs what is missing: by a file of the pack, or, where a wheel has none, by extras."""
    if not REQUIREMENTS.with_name(file).is_file() and _of_the_wheel() is not None:
        return f'pip install "{DISTRIBUTION}[{extras}]"'
    return f"pip install -r {file}"


def _of_the_wheel() -> list[str] | None:
    """What the installed wheel requires, its extras included; None where there is no wheel."""
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None


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
        return _numbers(installed) >= _numbers(versions)
    try:
        version = packaging.version.Version(installed)
    except packaging.version.InvalidVersion:
        return True  # somebody's own build
    allowed = packaging.specifiers.SpecifierSet(versions)
    return any(allowed.contains(one, prereleases=True) for one in (version, version.base_version))


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version: [0, 33, 0] of >=0.33 and of 0.33.0.dev0."""
    return [*map(int, re.findall(r"\d+", version.partition("+")[0])), 0, 0, 0][:3]


def _packaging() -> Any:
    """The library that knows all forms of a requirement. transformers brings it; without it, lower bounds are read."""
    try:
        import packaging.requirements
        import packaging.specifiers
        import packaging.version
    except ImportError:
        return None
    return packaging
