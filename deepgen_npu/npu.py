"""Everything specific to Ascend. torch_npu is imported here, and only when an NPU is requested."""

from __future__ import annotations

import functools
import logging
import os

import torch

from . import npu_fallback, npu_setup, npu_versions
from .checks import no_such_card
from .errors import DeviceError
from .problem import Problem


logger = logging.getLogger(__name__)


@functools.cache
def import_torch_npu() -> None:
    """Import torch_npu, which adds ``torch.npu``.

    Raises:
        DeviceError: When it is not installed or does not load: what is wrong, and the command that fixes it.
    """
    installed = npu_setup.package_version("torch_npu")
    torch_version = torch.__version__
    if installed is None:
        raise _error(npu_setup.not_installed(torch_version, npu_setup.cann_version(os.environ)))
    if problem := npu_versions.mismatch(torch_version, installed, npu_setup.cann_version(os.environ)):
        raise _error(problem, npu_setup.WITHOUT_TORCH_NPU)
    try:
        import torch_npu  # pyright: ignore[reportMissingImports]  # noqa: F401
    except Exception as error:
        problem = npu_setup.why_not_loaded(
            f"{type(error).__name__}: {error}", os.environ, torch=torch_version, torch_npu=installed
        )
        raise _error(problem, npu_setup.WITHOUT_TORCH_NPU) from error


def _error(problem: Problem, alternative: str = npu_setup.WITHOUT_NPU) -> DeviceError:
    return DeviceError(f"The NPU cannot be used: {problem.message(alternative)}")


def npu_count() -> int:
    """Number of usable NPUs; 0 also where torch_npu is missing or does not load, of which the latter is logged."""
    try:
        import_torch_npu()
    except DeviceError as error:
        if npu_setup.package_version("torch_npu") is not None:
            logger.warning("%s", str(error).rstrip())
        return 0
    return torch.npu.device_count() if torch.npu.is_available() else 0


def require_npu(index: int) -> None:
    """Check that card ``index`` exists and set it up for the calling thread.

    Raises:
        DeviceError: When there is no such card.
    """
    import_torch_npu()
    count = npu_count()
    if count == 0:
        raise _error(npu_setup.no_card(os.environ, npu_setup.cards(), npu_setup.driver_version()))
    if index >= count:
        raise DeviceError(no_such_card("npu", index, count, "ASCEND_RT_VISIBLE_DEVICES"))
    set_up_thread(index)


def has_bfloat16() -> bool | None:
    """Whether the cards compute in bfloat16, as torch_npu says; None where it does not say.

    It answers for the calling thread's card: all cards of a machine are of one family.
    """
    try:
        return bool(torch.npu.is_bf16_supported())
    except (AttributeError, RuntimeError):
        logger.debug("torch_npu does not say whether its cards have bfloat16", exc_info=True)
        return None


def set_up_thread(index: int) -> None:
    """Choose the card for the calling thread, and the settings that Ascend's own examples use.

    Contexts belong to threads: ComfyUI loads packs in one thread and runs prompts in another. Kernels compiled online
    (jit_compile) make first runs slow, and with private memory formats convolutions fail: both are turned off. From
    the first time on, operators that run on the CPU are named.
    """
    torch.npu.set_device(index)
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
    npu_fallback.watch()
