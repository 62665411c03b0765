"""Hard-link packages of `.venv` into a new virtual environment; pip then adds what is missing.

    .venv/bin/python -m dev.link_packages ENVIRONMENT CONSTRAINTS REQUIREMENTS...

It links what the requirement files ask for, and what that needs, in the version that the constraints allow, unless the
environment already has the package. The environments of the tests share most of their gigabytes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.layered_environment import site_packages


def requirements(path: Path) -> Iterator[Requirement]:
    """The requirements of a file and of those that it includes, without those whose markers do not apply."""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = re.split(r"(?:^|\s)#", line)[0].strip()
        if line.startswith("-r "):
            yield from requirements(path.parent / line[3:].strip())
        elif line and not line.startswith("-"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def needed(required: Iterable[Requirement], constraints: Iterable[Requirement]) -> dict[str, Distribution]:
    """Packages of this interpreter that the requirements need, directly or not, where the version is right."""
    bounds = {canonicalize_name(one.name): one.specifier for one in constraints}
    found: dict[str, Distribution] = {}
    waiting = [(requirement, "") for requirement in required]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        right = requirement.specifier.contains(package.version, prereleases=True)
        if right and (name not in bounds or bounds[name].contains(package.version, prereleases=True)):
            found[name] = package
            needs = [Requirement(text) for text in package.requires or ()]
            waiting += [(need, one) for need in needs for one in requirement.extras or ("",)]
    return found


def link(package: Distribution, target: Path) -> None:
    """Link all files of a package except those outside its folder, such as programs, which name their interpreter."""
    for file in package.files or ():
        if ".." not in file.parts and (source := Path(str(package.locate_file(file)))).is_file():
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                os.link(source, place)


def main(environment: Path, constraints: Path, *files: Path) -> None:
    """Link into an environment what some requirement files need."""
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    target = site_packages(python.absolute())[0]
    packages = needed((one for file in files for one in requirements(file)), requirements(constraints))
    for installed in distributions(path=[str(target)]):
        packages.pop(canonicalize_name(installed.metadata["Name"]), None)
    try:
        for package in packages.values():
            link(package, target)
    except OSError as error:
        print(f"{error}. pip installs what could not be linked.")
    print(f"{len(packages)} packages of {Path(sys.prefix).name} linked into {environment.name}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
