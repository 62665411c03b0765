"""What an Ascend host needs, and how to tell which part of it is missing. Nothing here imports torch.

A `Problem` is what the doctor lists and what an error message is made of.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from .requirements import how_to_install


NOT_INSTALLED = "torch_npu is not installed in this Python"
NOT_SOURCED = "torch_npu is installed, but the environment of CANN is not sourced: its libraries are not found"
NO_CANN = "torch_npu is installed, but CANN, whose libraries it needs, is not found on this machine"

WITHOUT_NPU = "To run without an NPU, choose --device auto or --device cpu."
# While a torch_npu that does not load is installed, neither torch nor diffusers can be imported at all.
WITHOUT_TORCH_NPU = "To run without an NPU: pip uninstall torch_npu"

VARIABLES = (
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_LAUNCH_BLOCKING",
    "TASK_QUEUE_ENABLE",
    "CPU_AFFINITY_CONF",
    "PYTORCH_NPU_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "LD_LIBRARY_PATH",
)
"""Environment variables that matter, first of all on an Ascend host."""

# Where CANN is installed for all users or for one: since 8.5 in cann, before in ascend-toolkit; nnae has no compilers.
_CANN_FOLDERS = ("cann", "ascend-toolkit/latest", "ascend-toolkit", "nnae/latest", "nnae")
_BUILT_FOR_ANOTHER = "undefined symbol"


class Problem(NamedTuple):
    """What is wrong, and the command (or, where there is none, the sentence) that fixes it."""

    what: str
    fix: str

    def __str__(self) -> str:
        what = self.what if self.what.endswith((".", "?", "!")) else f"{self.what}."
        return f"{what} To fix it: {self.fix}"


# Versions


def package_version(name: str) -> str | None:
    """The version of an installed package, read without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def release(number: str | None) -> tuple[int, ...] | None:
    """The first three numbers of a version: (2, 9, 0) of 2.9.0+cpu and of 2.9.0.post2."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", number or "")
    return tuple(int(part or 0) for part in match.groups()) if match else None


def mismatch(torch: str | None, torch_npu: str | None) -> Problem | None:
    """The trouble where these releases of torch and torch_npu do not belong together.

    A torch_npu is built for one torch and requires it (``torch==2.9.0.*``): the first three numbers are the same.
    What follows them (+cpu, .post2) does not matter.
    """
    if torch is None or torch_npu is None or release(torch) == release(torch_npu):
        return None
    return Problem(
        f"torch_npu {torch_npu} does not belong to torch {torch}: the first three numbers have to be the same",
        install_command(torch),
    )


def install_command(torch: str | None) -> str:
    """The command that installs the torch_npu of a torch."""
    numbers = release(torch)
    if numbers is None:
        return how_to_install("requirements-npu.txt", "run,npu")
    return f'pip install "torch_npu=={".".join(map(str, numbers))}.*"'


# CANN and driver


def cards(root: Path = Path("/")) -> list[str]:
    """Device files of the NPUs that this process sees: ``/dev/davinci0`` and so on."""
    return [f"/{path}" for path in sorted(glob.glob("dev/davinci[0-9]*", root_dir=root), key=_by_number)]


def _by_number(path: str) -> int:
    return int(re.sub(r"\D", "", path) or 0)


def cann_folders(environment: Mapping[str, str], root: Path = Path("/")) -> list[Path]:
    """Folders of CANN that exist: those that the environment names, then the usual ones."""
    named = [environment.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    places = [Path(home) for home in named if home]
    bases = [root / "usr/local/Ascend"]
    if home := environment.get("HOME"):
        bases.append(Path(home) / "Ascend")
    places += [base / folder for base in bases for folder in _CANN_FOLDERS]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def set_env_script(environment: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """``set_env.sh`` of the CANN on this machine; None when there is none in the usual places."""
    for folder in cann_folders(environment, root):
        for path in (folder / "set_env.sh", folder.parent / "set_env.sh"):
            if path.is_file():
                return path
    return None


def cann_version(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """The release of CANN that the environment points to, or else of its usual places."""
    for place in cann_folders(environment, root):
        for name in ("*-linux/ascend_*_install.info", "version.cfg", "compiler/version.info"):
            for path in sorted(place.glob(name)):
                if found := _version_in(path):
                    return found
    return None


def driver_version(root: Path = Path("/")) -> str | None:
    """The release of the Ascend driver; None where it is not installed, or hidden from a container."""
    return _version_in(root / "usr/local/Ascend/driver/version.info")


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
        torch: Installed version.
        torch_npu: Installed version.
    """
    if trouble := mismatch(torch, torch_npu) or conflict(environment, torch_npu):
        return trouble
    if library := re.search(r"(lib\w+\.so[\w.]*): cannot open shared object", error):
        script = set_env_script(environment, root)
        if script is not None:
            return Problem(f"{NOT_SOURCED} ({library[1]})", f"source {script}")
        return Problem(
            f"{NO_CANN} ({library[1]})",
            "install CANN, or source the set_env.sh of the folder it is installed in "
            "(usually source /usr/local/Ascend/cann/set_env.sh, before CANN 8.5 "
            "source /usr/local/Ascend/ascend-toolkit/set_env.sh)",
        )
    if package := re.search(r"No module named '([\w.]+)'", error):
        return Problem(f"torch_npu needs the package {package[1]}", "pip install -r requirements-npu.txt")
    if "Two accelerators" in error:
        return Problem(
            "torch_npu refuses a PyTorch that finds an accelerator of another kind",
            "install the CPU build of PyTorch beside torch_npu",
        )
    if _BUILT_FOR_ANOTHER in error:
        return Problem(
            f"torch_npu {torch_npu} was built for another torch or another CANN ({_last_line(error)})",
            f"{install_command(torch)}  # and check that this CANN is one that this torch_npu names",
        )
    return Problem(f"torch_npu is installed but does not load ({_last_line(error)})", install_command(torch))


def _last_line(error: str) -> str:
    """The line of an error that tells most: with a chain of errors, the cause of the first."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    telling = [line for line in lines if "cannot open shared object" in line or _BUILT_FOR_ANOTHER in line]
    return (telling or lines[-1:] or ["no message"])[0]


def conflict(environment: Mapping[str, str], torch_npu: str | None) -> Problem | None:
    """Two variables for the allocator, at which torch_npu 2.10 and later stops."""
    both = "PYTORCH_NPU_ALLOC_CONF" in environment and "PYTORCH_ALLOC_CONF" in environment
    if both and (release(torch_npu) or (0, 0, 0)) >= (2, 10, 0):
        return Problem(
            "PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set, at which torch_npu 2.10 and later stops",
            "unset PYTORCH_ALLOC_CONF",
        )
    return None


def no_card(environment: Mapping[str, str], found: Sequence[str], driver: str | None) -> Problem:
    """Why a torch_npu that loads finds no card.

    Args:
        found: Device files, see `cards`.
        driver: See `driver_version`.
    """
    visible = environment.get("ASCEND_RT_VISIBLE_DEVICES")
    if found and visible is not None:
        return Problem(
            f"torch_npu finds no NPU, although there is {', '.join(found)}: ASCEND_RT_VISIBLE_DEVICES is {visible!r}",
            "unset ASCEND_RT_VISIBLE_DEVICES  # or set it to the number of a card that `npu-smi info` lists",
        )
    if found:
        return Problem(
            f"torch_npu finds no NPU, although there is {', '.join(found)}",
            "npu-smi info  # does it list the card as OK, and may this user read it (group HwHiAiUser)?",
        )
    if driver is not None:
        return Problem(
            "torch_npu finds no NPU: the driver is installed, but there is no card at /dev/davinci*",
            "npu-smi info  # a container has to be started with --device /dev/davinci0 and the manager devices",
        )
    return Problem(
        "torch_npu finds no NPU: this machine has no Ascend card, or no driver for it",
        "install driver and firmware of the card, then npu-smi info lists it",
    )


def explain_import(error: BaseException, environment: Mapping[str, str] | None = None) -> str | None:
    """One line for a user whose torch does not import; None when the error is about something else.

    With torch_npu installed, `import torch` loads it, and fails where it fails.
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
        return str(Problem("torch is not installed in this Python", "pip install torch, as pytorch.org tells"))
    if torch_npu is None or not (_is_of_torch_npu(chain) or "torch_npu" in text):
        named = bool(missing) and missing != __package__
        return f"The package {missing} is not installed: {how_to_install()}" if named else None
    trouble = why_not_loaded(text, os.environ if environment is None else environment, Path("/"), torch, torch_npu)
    return f"{trouble}. {WITHOUT_TORCH_NPU}"


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
    """Settings that are known to help on an NPU, and such that hurt. Nothing sets them but the user."""
    if environment.get("ASCEND_LAUNCH_BLOCKING") == "1":
        yield Problem(
            "ASCEND_LAUNCH_BLOCKING=1 makes the host wait for every operator: for finding errors, not for work",
            "unset ASCEND_LAUNCH_BLOCKING",
        )
    if environment.get("TASK_QUEUE_ENABLE") != "2":
        yield Problem(
            "TASK_QUEUE_ENABLE=2 launches operators in two stages, faster than the default 1, for some more memory",
            "export TASK_QUEUE_ENABLE=2",
        )
    if "CPU_AFFINITY_CONF" not in environment:
        yield Problem(
            "CPU_AFFINITY_CONF binds threads to the card's processor cores; measure it, ComfyUI has further threads",
            "export CPU_AFFINITY_CONF=1",
        )
    if "PYTORCH_NPU_ALLOC_CONF" not in environment and "PYTORCH_ALLOC_CONF" not in environment:
        yield Problem(
            "expandable segments leave fewer gaps in the card's memory",
            "export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        )
