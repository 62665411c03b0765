"""Everything that is Ascend's own. torch_npu is imported here and only when an NPU is asked for."""

from __future__ import annotations

import functools
import logging
import os

import torch

from . import npu_setup
from .errors import DeviceError
from .npu_setup import Problem


logger = logging.getLogger(__name__)


@functools.cache
def import_torch_npu() -> None:
    """Import torch_npu, which adds ``torch.npu``.

    Raises:
        DeviceError: When it is not installed or does not load: which of the two, why, and the command that fixes it.
    """
    installed = npu_setup.package_version("torch_npu")
    torch_version = torch.__version__
    if installed is None:
        raise _error(Problem(npu_setup.NOT_INSTALLED, npu_setup.install_command(torch_version)))
    if trouble := npu_setup.mismatch(torch_version, installed):
        raise _error(trouble, npu_setup.WITHOUT_TORCH_NPU)
    try:
        import torch_npu  # pyright: ignore[reportMissingImports]  # noqa: F401
    except Exception as error:
        trouble = npu_setup.why_not_loaded(
            f"{type(error).__name__}: {error}", os.environ, torch=torch_version, torch_npu=installed
        )
        raise _error(trouble, npu_setup.WITHOUT_TORCH_NPU) from error


def _error(trouble: Problem, otherwise: str = npu_setup.WITHOUT_NPU) -> DeviceError:
    return DeviceError(f"An NPU was asked for: {trouble}. {otherwise}")


def npu_count() -> int:
    """Number of usable NPUs; 0 also where torch_npu is missing, or broken, which is logged."""
    try:
        import_torch_npu()
    except DeviceError as error:
        if npu_setup.package_version("torch_npu") is not None:
            logger.warning("The NPU, if there is one, is not used. %s", error)
        return 0
    return torch.npu.device_count() if torch.npu.is_available() else 0


def require_npu(index: int) -> None:
    """Make sure that card ``index`` exists and set it up for the calling thread.

    Raises:
        DeviceError: When there is no such card.
    """
    import_torch_npu()
    count = npu_count()
    if count == 0:
        raise _error(npu_setup.no_card(os.environ, npu_setup.cards(), npu_setup.driver_version()))
    if index >= count:
        raise DeviceError(
            f"npu:{index} was asked for; this machine has npu:0 to npu:{count - 1}. ASCEND_RT_VISIBLE_DEVICES, "
            "where it is set, chooses the cards that are counted."
        )
    set_up_thread(index)


def set_up_thread(index: int) -> None:
    """Choose the card for the calling thread and the settings every Ascend entry point uses.

    Contexts belong to threads: ComfyUI loads packs in one thread and runs prompts in another. Kernels
    compiled online (jit_compile) and private memory formats make first runs slow and convolutions fail;
    Ascend's own examples turn both off.
    """
    torch.npu.set_device(index)
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
