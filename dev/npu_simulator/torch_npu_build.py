"""Compile what the tests on the real torch_npu need.

    python -m dev.npu_simulator.torch_npu_build

Into build/torch_npu/VERSION: the stand-ins for CANN and the kernels of the card. Into torch's own folder, where it
looks for them: the stand-ins for CUDA, if its build is one for CUDA. Only what is missing is compiled, or whose
source, torch or torch_npu has changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from deepgen_npu import npu_setup


HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "build" / "torch_npu" / (npu_setup.package_version("torch_npu") or "none")
LIBRARIES = FOLDER / "lib"
KERNELS = FOLDER / "host_npu.so"
CUDA = "libcudastub.so"


def build() -> None:
    """Build what is missing or out of date.

    Raises:
        SystemExit: When there is no compiler.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    _bring_up_to_date(
        _torch() / "lib" / CUDA, ("cuda_stub.c", "cuda_stub.cpp", "stub_libraries.py"), _stand_in_for_cuda
    )
    _bring_up_to_date(LIBRARIES, ("acl_stub.c", "stub_libraries.py"), _stand_in_for_cann)
    _bring_up_to_date(KERNELS, ("host_npu.cpp",), _build_kernels)


def _bring_up_to_date(target: Path, sources: Sequence[str], make: Callable[[], None]) -> None:
    digest = hashlib.sha256()
    for source in (*sources, Path(__file__).name):
        digest.update((HERE / source).read_bytes())
    key = f"torch {version('torch')}, torch_npu {version('torch_npu')}, sources {digest.hexdigest()}\n"
    stamp = target.with_suffix(".stamp")
    if target.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        return
    stamp.unlink(missing_ok=True)
    print(f"Building {os.path.relpath(target)}", flush=True)
    make()
    stamp.write_text(key, encoding="utf-8")


def _stand_in_for_cuda() -> None:
    """Libraries of CUDA, or for a CPU build of torch a library that nothing needs."""
    from . import stub_libraries

    _compiler("CC", "cc")
    missing = stub_libraries.of_cuda(_torch().parent, CUDA)
    stub_libraries.write(_torch() / "lib", CUDA, missing, (HERE / "cuda_stub.c", HERE / "cuda_stub.cpp"))
    print("Stand-ins for", *(missing.libraries or ["no library: torch is a CPU build"]))


def _stand_in_for_cann() -> None:
    from . import stub_libraries

    _compiler("CC", "cc")
    shutil.rmtree(LIBRARIES, ignore_errors=True)
    missing = stub_libraries.of_cann(_torch().parent)
    stub_libraries.write(LIBRARIES, "libascendstub.so", missing, [HERE / "acl_stub.c"])
    print("Stand-ins for", *missing.libraries)


def _build_kernels() -> None:
    torch = _torch()
    # -O0 compiles faster; the arithmetic is in the kernels of PyTorch.
    options = ("-std=c++20", "-O0", "-w", "-fPIC", "-shared", "-Wl,--no-undefined")
    include = (f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include")
    link = (f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib")
    command = [_compiler("CXX", "c++"), *options, *include, str(HERE / "host_npu.cpp"), "-o", str(KERNELS), *link]
    subprocess.run(command, check=True)


def _torch() -> Path:
    """The folder of torch. It is not imported, because it would load torch_npu."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _compiler(variable: str, usual: str) -> str:
    name = os.environ.get(variable, usual)
    if shutil.which(name) is None:
        raise SystemExit(
            f"The tests on the real torch_npu compile stand-ins for CANN, but there is no compiler {name!r}. Install "
            f"a C and a C++20 compiler (on Debian and Ubuntu: apt install g++), or name yours in {variable}."
        )
    return name


if __name__ == "__main__":
    build()
