"""What an Ascend host needs, and how to find out which part of it is missing. Nothing here imports torch.

The doctor lists the same `Problem` that an error message is made of.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import npu_versions
from .formatting import command
from .problem import Problem
from .requirements import how_to_install


NOT_INSTALLED = "torch_npu is not installed in this Python"
NOT_SOURCED = "torch_npu is installed, but the environment of CANN is not sourced: its libraries are not found"
NO_CANN = "torch_npu is installed, but CANN, whose libraries it needs, is not found on this machine"
NOWHERE = "CANN is not found on this machine"

WHAT_TORCH_NPU_NEEDS = "pip install pyyaml decorator scipy attrs psutil"
"""Packages that torch_npu imports; not all of its releases declare them."""

WITHOUT_NPU = "To run without an NPU, choose --device auto or --device cpu."
"""What a user can do instead of fixing a problem of the NPU."""

WITHOUT_TORCH_NPU = f"To run without an NPU:{command('pip uninstall torch_npu')}"
"""The same where torch_npu does not load: while it is installed, neither torch nor diffusers can be imported."""

_TUNING = (
    "ASCEND_LAUNCH_BLOCKING",
    "TASK_QUEUE_ENABLE",
    "CPU_AFFINITY_CONF",
    "PYTORCH_NPU_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)

VARIABLES = (
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_RT_VISIBLE_DEVICES",
    *_TUNING,
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "LD_LIBRARY_PATH",
)
"""Environment variables that decide whether and how an NPU, and the rest of this library, works."""

MEASURED = (*_TUNING, "OMP_NUM_THREADS")
"""Environment variables that change times or memory: a measurement lists those that are set."""

DRIVER = "usr/local/Ascend/driver"

_CANN_FOLDERS = ("cann", "ascend-toolkit/latest", "ascend-toolkit", "nnae/latest", "nnae")
"""Where CANN is, below ``/usr/local/Ascend`` or ``~/Ascend``: from 8.5 in cann, before in ascend-toolkit. nnae is CANN
without compilers."""


def package_version(name: str) -> str | None:
    """The version of an installed package, read without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# CANN and driver


def cards(root: Path = Path("/")) -> list[str]:
    """Device files of the NPUs that are visible to this process: ``/dev/davinci0`` and so on."""
    return [f"/{path}" for path in sorted(glob.glob("dev/davinci[0-9]*", root_dir=root), key=_by_number)]


def _by_number(path: str) -> int:
    return int(re.sub(r"\D", "", path) or 0)


def cann_folders(environment: Mapping[str, str], root: Path = Path("/")) -> list[Path]:
    """Folders of CANN that exist: first those that the environment names, then the usual ones."""
    named = [environment.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    places = [Path(home) for home in named if home]
    bases = [root / "usr/local/Ascend"]
    if home := environment.get("HOME"):
        bases.append(Path(home) / "Ascend")
    places += [base / folder for base in bases for folder in _CANN_FOLDERS]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def set_env_script(environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """``set_env.sh`` of the CANN on this machine; None if there is none in these folders."""
    for folder in cann_folders(environment, root):
        for path in (folder / "set_env.sh", folder.parent / "set_env.sh"):
            if path.is_file():
                return path
    return None


def cann_version(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """The release of CANN that the environment names, otherwise of the one in the usual folders."""
    for place in cann_folders(environment, root):
        for name in ("*-linux/ascend_*_install.info", "version.cfg", "compiler/version.info"):
            for path in sorted(place.glob(name)):
                if found := _version_in(path):
                    return found
        if named := re.fullmatch(r"cann-(\d[\w.-]+)", place.resolve().name):
            return named[1]
    return None


def driver_version(root: Path = Path("/")) -> str | None:
    """The release of the Ascend driver; None where it is not installed, or hidden from a container."""
    driver = root / DRIVER
    try:
        installed = (root / "etc/ascend_install.info").read_text(encoding="utf-8", errors="replace")
    except OSError:
        installed = ""
    if elsewhere := re.search(r"^Driver_Install_Path_Param=/(\S+)$", installed, re.MULTILINE):
        driver = root / elsewhere[1] / "driver"
    return _version_in(driver / "version.info") or ("unknown" if (driver / "lib64").is_dir() else None)


def _version_in(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for name in ("version", r"\w*version"):  # innerversion and the like are other numbers
        if match := re.search(rf"^\s*{name}\s*=\s*\[?([\w.:\-]+)", text, re.IGNORECASE | re.MULTILINE):
            return match[1].rpartition(":")[2]  # version.cfg: [7.0.0.5.242:8.0.RC1]
    return None


# What is wrong


_LIBRARY = r"(lib\w+\.so[\w.]*): cannot open shared object"
_SYMBOL = "undefined symbol"

_SYMPTOMS = (
    (_LIBRARY, f"{NOT_SOURCED} ({{found}})", "source {script}"),
    (
        _LIBRARY,
        f"{NO_CANN} ({{found}})",
        "{cann}",
    ),
    (
        r"No module named '([\w.]+)'",
        "torch_npu needs the package {found}, which is not installed",
        WHAT_TORCH_NPU_NEEDS,
    ),
    (
        "Two accelerators",
        "torch_npu does not work with a PyTorch that finds an accelerator of another kind",
        "Install the CPU build of PyTorch for torch_npu",
    ),
    (
        _SYMBOL,
        "torch_npu {torch_npu} was built for another torch or another CANN ({cause})",
        "{install}",
    ),
    ("", "torch_npu is installed but does not load ({cause})", "{install}"),
)
"""Why an installed torch_npu does not load: what its error contains (a regular expression), the problem, the fix.

The first row that matches applies. ``{found}`` is what the expression's group matched, ``{script}`` the set_env.sh of
this machine (without one, its row is left out), ``{cause}`` the most informative line of the error, ``{cann}`` how to
install CANN, and ``{install}`` the command that installs the torch_npu that matches torch and CANN."""


def why_not_loaded(
    error: str,
    environment: Mapping[str, str],
    root: Path = Path("/"),
    torch: str | None = None,
    torch_npu: str | None = None,
) -> Problem:
    """Why an installed torch_npu does not load.

    Args:
        error: What its import raised; of a chain of errors, all of them.
        environment: Environment variables.
        root: Of the file system.
        torch: Installed version.
        torch_npu: Installed version.
    """
    cann = cann_version(environment, root)
    if problem := npu_versions.mismatch(torch, torch_npu, cann) or conflict(environment, torch_npu):
        return problem
    if _SYMBOL in error and (problem := npu_versions.not_a_pair(torch, torch_npu, cann, "apart")):
        return problem
    script = set_env_script(environment, root)
    facts = {"script": script, "torch_npu": torch_npu, "cause": _cause(error)}
    facts |= {"install": npu_versions.how_to_install(torch, cann), "cann": install_cann(torch_npu)}
    for pattern, what, fix in _SYMPTOMS:
        match = re.search(pattern, error)
        if match is None or (script is None and "{script}" in fix):
            continue
        found = match[match.lastindex or 0]
        return Problem(what.format(found=found, **facts), fix.format(found=found, **facts))
    raise AssertionError("the last row of the table matches every error")


def _cause(error: str) -> str:
    """The most informative line of an error: of a chain of errors, the first cause."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    causes = [line for line in lines if re.search(f"cannot open shared object|{_SYMBOL}", line)]
    return (causes or lines[-1:] or ["no message"])[0]


def conflict(environment: Mapping[str, str], torch_npu: str | None) -> Problem | None:
    """The problem of two variables for the allocator, with which torch_npu 2.10 and later does not load."""
    both = "PYTORCH_NPU_ALLOC_CONF" in environment and "PYTORCH_ALLOC_CONF" in environment
    if both and (npu_versions.release(torch_npu) or (0, 0, 0)) >= (2, 10, 0):
        return Problem(
            "PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set; torch_npu 2.10 and later refuses to start",
            "unset PYTORCH_ALLOC_CONF",
        )
    return None


def install_cann(torch_npu: str | None) -> str:
    """What to do where CANN is not found."""
    return (
        f"Install CANN {npu_versions.cann_to_install(torch_npu)} (toolkit, and the ops package of the card); if it is "
        "installed in a folder of its own, source the set_env.sh there"
    )


def not_installed(torch: str | None, cann: str | None) -> Problem:
    """What to say where torch_npu is not installed. Without CANN, torch itself would no longer load with it."""
    if cann is None:
        return Problem(
            f"{NOT_INSTALLED}, and {NOWHERE}",
            "python -m deepgen_npu doctor --device npu  # says what to install, in which order",
        )
    return Problem(NOT_INSTALLED, npu_versions.how_to_install(torch, cann))


def no_driver(found: Sequence[str]) -> Problem:
    """What to say where no driver is found.

    Args:
        found: Device files, see `cards`.
    """
    if found:
        return Problem(
            f"there is {', '.join(found)}, but no driver in /{DRIVER}",
            f"Start the container with -v /{DRIVER}:/{DRIVER}:ro; outside of a container, install the driver",
        )
    return Problem(
        "this machine has no Ascend card, or no driver for it",
        "Install driver and firmware of the card; npu-smi info then lists it",
    )


def no_card(environment: Mapping[str, str], found: Sequence[str], driver: str | None) -> Problem:
    """Why a torch_npu that loads finds no card.

    Args:
        environment: Environment variables.
        found: Device files, see `cards`.
        driver: See `driver_version`.
    """
    visible = environment.get("ASCEND_RT_VISIBLE_DEVICES")
    if found and visible is not None:
        return Problem(
            f"torch_npu finds no NPU, although there is {', '.join(found)}: ASCEND_RT_VISIBLE_DEVICES is {visible!r}",
            "unset ASCEND_RT_VISIBLE_DEVICES  # or set it to the number of a card that npu-smi info lists",
        )
    if driver is None:
        return Problem(f"torch_npu finds no NPU: {no_driver(found).what}", no_driver(found).fix)
    if found:
        return Problem(
            f"torch_npu finds no NPU, although there is {', '.join(found)}",
            "npu-smi info  # lists the card as OK? If so, add this user to the group HwHiAiUser, which may use it",
        )
    return Problem(
        "torch_npu finds no NPU: the driver is installed, but there is no card at /dev/davinci*",
        "npu-smi info  # lists the card? Start a container with --device /dev/davinci0 and the manager devices",
    )


def explain_import(error: BaseException, environment: Mapping[str, str] | None = None) -> str | None:
    """The message for a user whose torch does not import; None when the error is about something else.

    With torch_npu installed, `import torch` loads it, and fails if it fails.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    # torch wraps what its backend raised; diffusers and transformers wrap what torch_npu raised.
    wrapped = isinstance(error, RuntimeError) and str(error).startswith(("Failed to load the backend", "Failed to im"))
    if not isinstance(error, ImportError) and not wrapped:
        return None
    text = "\n".join(f"{type(link).__name__}: {link}" for link in reversed(chain))
    torch, torch_npu = package_version("torch"), package_version("torch_npu")
    missing = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if torch is None and missing == "torch":
        return Problem(
            "torch is not installed in this Python", "pip install torch  # in the build that pytorch.org names"
        ).message()
    if torch_npu is None or not (_is_of_torch_npu(chain) or "torch_npu" in text):
        named = bool(missing) and missing != __package__
        problem = Problem(f"The package {missing} is not installed", how_to_install())
        return problem.message() if named else None
    problem = why_not_loaded(text, os.environ if environment is None else environment, Path("/"), torch, torch_npu)
    return problem.message(WITHOUT_TORCH_NPU)


def _is_of_torch_npu(chain: Sequence[BaseException]) -> bool:
    """Whether one of the errors was raised in a file of torch_npu."""
    for error in chain:
        frame = error.__traceback__
        while frame is not None:
            if f"{os.sep}torch_npu{os.sep}" in frame.tb_frame.f_code.co_filename:
                return True
            frame = frame.tb_next
    return False


def advice(environment: Mapping[str, str]) -> Iterator[Problem]:
    """Settings known to help or hurt on an NPU. Only the user sets them."""
    if environment.get("ASCEND_LAUNCH_BLOCKING") == "1":
        yield Problem(
            "ASCEND_LAUNCH_BLOCKING=1 makes the host wait for every operator: only for finding errors",
            "unset ASCEND_LAUNCH_BLOCKING",
        )
    if environment.get("TASK_QUEUE_ENABLE") != "2":
        yield Problem(
            "TASK_QUEUE_ENABLE=2 launches operators in two stages: faster than the default 1, with some more memory",
            "export TASK_QUEUE_ENABLE=2",
        )
    if "CPU_AFFINITY_CONF" not in environment:
        yield Problem(
            "CPU_AFFINITY_CONF binds threads to the card's CPU cores; measure it, ComfyUI has further threads",
            "export CPU_AFFINITY_CONF=1",
        )
    if "PYTORCH_NPU_ALLOC_CONF" not in environment and "PYTORCH_ALLOC_CONF" not in environment:
        yield Problem(
            "expandable segments reduce the fragmentation of the card's memory",
            "export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        )
