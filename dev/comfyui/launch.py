"""Start a ComfyUI checkout, also on a PyTorch whose torchvision or torchaudio cannot load.

Usage: COMFYUI_PATH=<checkout> python launch.py [ComfyUI arguments]

A CPU build of PyTorch beside torchvision wheels built for CUDA is common on test machines: their
compiled operators do not load, and ComfyUI imports both packages at start. The Python half of
torchvision (transforms, model definitions) works without the operators, and ComfyUI needs
torchaudio only for audio nodes. The help sets in when ComfyUI's own import of a package fails;
nothing is imported ahead of ComfyUI, and packages that load normally are left as they are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import runpy
import sys
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


WATCH_STDIN = "DEEPGEN_BENCH_WATCH_STDIN"
SIMULATED_NPU = "DEEPGEN_BENCH_SIMULATED_NPU"


class AbsentModule(types.ModuleType):
    """Stands in for a package that is imported at start but must not be used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentModule(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.__name__} is not available on this machine")


class AbsentLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def forget_submodules(package: str) -> None:
    """Drop what a failed import left behind, so that it can be tried again."""
    for name in list(sys.modules):
        if name.startswith(package + "."):
            del sys.modules[name]


def retry_without_operators(module: types.ModuleType, execute: Callable[..., None]) -> None:
    """Import torchvision without the registrations that need its compiled operators."""
    import torch

    register_fake = torch.library.register_fake

    def lenient(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register_fake(op, *args, **kwargs)

    torch.library.register_fake = lenient
    try:
        execute(module)
    finally:
        torch.library.register_fake = register_fake


def become_absent(module: types.ModuleType, execute: Callable[..., None]) -> None:
    finder.absent.add(module.__name__)
    module.__class__ = AbsentModule


FALLBACKS = {"torchvision": retry_without_operators, "torchaudio": become_absent}


class TolerantFinder(importlib.abc.MetaPathFinder):
    """Finds the two packages as usual, and arranges that their import succeeds."""

    def __init__(self) -> None:
        self.absent: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package = name.partition(".")[0]
        if name == package and package in FALLBACKS:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is not None and spec.loader is not None:
                self._guard(spec, FALLBACKS[package])
                return spec
            if package == "torchaudio":
                self.absent.add(package)
        if package in self.absent:
            return importlib.machinery.ModuleSpec(name, AbsentLoader(), is_package=True)
        return None

    def _guard(
        self,
        spec: importlib.machinery.ModuleSpec,
        fallback: Callable[[types.ModuleType, Callable[..., None]], None],
    ) -> None:
        loader: Any = spec.loader
        execute = loader.exec_module

        def guarded(module: types.ModuleType) -> None:
            try:
                execute(module)
            except Exception:
                forget_submodules(spec.name)
                fallback(module, execute)

        loader.exec_module = guarded


finder = TolerantFinder()


def exit_with_parent() -> None:
    """End this process when the other end of stdin closes, however the parent died."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def install_simulated_npu(mebibytes: int, cards: int = 1) -> None:
    """Give this process simulated NPUs, which ComfyUI then finds by itself."""
    root = str(Path(__file__).resolve().parents[2])
    sys.path.append(root)
    from dev.npu_simulator.simulated import state
    from dev.npu_simulator.simulated_torch_npu import install

    sys.path.remove(root)  # its `nodes` must not be taken for ComfyUI's
    install(cards)
    for memory in state.memory:
        memory.total = mebibytes << 20


def find_modules_of(root: str) -> None:
    """Let this process import the checkout's modules.

    In the place of the script's folder, which has modules with the names of ComfyUI's own.
    """
    sys.path[0] = root
    sys.meta_path.insert(0, finder)


def enter(root: str, arguments: Sequence[str] = (), simulated_npu: int = 0, cards: int = 1) -> None:
    """Make this process one of ComfyUI, without a server: its modules are imported next.

    Args:
        root: The checkout.
        arguments: Of ComfyUI's command line.
        simulated_npu: MiB of each simulated NPU to run on; 0 is none.
        cards: Number of simulated NPUs.
    """
    if simulated_npu:
        install_simulated_npu(simulated_npu, cards)
    sys.argv[1:] = arguments
    find_modules_of(root)
    options: Any = importlib.import_module("comfy.options")
    options.enable_args_parsing()


def main() -> None:
    root = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    if os.environ.pop(WATCH_STDIN, ""):
        exit_with_parent()
    if mebibytes := os.environ.pop(SIMULATED_NPU, ""):
        install_simulated_npu(int(mebibytes))
    find_modules_of(str(root))
    os.chdir(root)
    sys.argv = [str(root / "main.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
