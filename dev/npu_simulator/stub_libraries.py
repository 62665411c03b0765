"""Stand-ins for shared libraries that are not on this machine: those of CANN for torch_npu, those of CUDA for torch.

The ELF files of an installed package show what is missing: libraries that do not exist here, and functions that no
library defines. A source of ours implements those that have to work; every other one becomes a stub that returns an
error. Nothing of CANN or CUDA is copied. torch is not imported here: without these libraries it may not load.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile


_DECLARED = '__attribute__((visibility("hidden"))) void ascend_stub_trace(const char *name);'
_STUB = """
long stub{number}(void) __asm__("{name}");
long stub{number}(void) {{ ascend_stub_trace("{name}"); return 507008; }}
"""
_OPENED_BY_NAME = ("libopapi.so",)
"""torch_npu 2.9.0 opens it when it is imported, to ask for functions that may be absent."""
_SYSTEM = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")


@dataclass(frozen=True)
class Missing:
    """What files need and this machine lacks: libraries, and functions that no library defines."""

    libraries: list[str]
    functions: set[str]


@dataclass(frozen=True)
class _Symbols:
    libraries: set[str]
    undefined: set[str]
    defined: set[str]


def of_cann(site_packages: Path) -> Missing:
    """What the torch_npu of an environment lacks."""
    found = _missing(sorted((site_packages / "torch_npu").rglob("*.so")), [site_packages / "torch" / "lib"])
    return Missing(sorted({*found.libraries, *_OPENED_BY_NAME}), found.functions)


def of_cuda(site_packages: Path, common: str) -> Missing:
    """What the torch of an environment lacks; nothing unless it is a CUDA build.

    Args:
        site_packages: Of the environment.
        common: The library that stand-ins of an earlier time link to.
    """
    torch = site_packages / "torch"
    files = [path for path in sorted((torch / "lib").glob("*.so*")) if path.name != common]
    own = [path for path in files if common not in _symbols(path, ".dynsym").libraries]
    return _missing([*own, *torch.glob("_C.*.so")], [])


def write(folder: Path, common: str, missing: Missing, sources: Iterable[Path]) -> None:
    """Compile the libraries into a folder.

    Args:
        folder: Of the libraries.
        common: Name of the library that has all functions; the others link to it.
        missing: What to write.
        sources: In C and C++: the functions that have to work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compilers = {".c": os.environ.get("CC", "cc"), ".cpp": os.environ.get("CXX", "c++")}
    objects = []
    for source in sources:
        objects.append(folder / f"{source.name}.o")
        _run(compilers[source.suffix], "-O1", "-w", "-fPIC", "-c", "-o", objects[-1], source)
    known = {name for path in objects for name in _symbols(path, ".symtab").defined}
    others = folder / f"{common}.c"
    stubs = (_STUB.format(number=number, name=name) for number, name in enumerate(sorted(missing.functions - known)))
    others.write_text(_DECLARED + "".join(stubs), encoding="utf-8")
    library = folder / common
    link = ("-shared", f"-Wl,-soname,{common}", "-o", library, *objects, others, "-Wl,--as-needed", "-lstdc++")
    _run(compilers[".c"], "-O1", "-w", "-fPIC", *link)

    empty = folder / f"{common}.empty.c"
    empty.write_text("static int unused;\n", encoding="utf-8")
    for name in missing.libraries:
        # Nothing in it uses the common library, hence --no-as-needed.
        link = (f"-Wl,-soname,{name}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN")
        _run(compilers[".c"], "-w", "-fPIC", "-shared", *link, "-o", folder / name, empty, library)
    for path in (*objects, others, empty):
        path.unlink()


def _missing(own: list[Path], beside: list[Path]) -> Missing:
    """What some files need.

    Args:
        own: The files.
        beside: Folders with libraries that they find, besides those of the system.
    """
    wheel = _union(_symbols(path, ".dynsym") for path in own)
    places = [*beside, *(Path("/", place) for place in _SYSTEM), Path("/lib64"), Path("/lib")]
    present: dict[str, Path | None] = {path.name: None for path in own}
    for name in wheel.libraries - present.keys():
        found = [place / name for place in places if (place / name).exists()]
        if found:
            present[name] = found[0]
    system = _union(_symbols(path, ".dynsym") for path in present.values() if path is not None)
    undefined = wheel.undefined - wheel.defined - system.defined
    # The functions of Python are in the interpreter.
    functions = {name for name in undefined if not name.startswith(("Py", "_Py"))}
    return Missing(sorted(wheel.libraries - present.keys()), functions)


@functools.cache
def _symbols(path: Path, section: str) -> _Symbols:
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        dynamic = elf.get_section_by_name(".dynamic")
        tags = dynamic.iter_tags() if dynamic is not None else ()
        libraries = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        undefined, defined = set(), set()
        for symbol in elf.get_section_by_name(section).iter_symbols():
            if symbol["st_shndx"] != "SHN_UNDEF":
                defined.add(symbol.name)
            elif symbol["st_info"]["bind"] != "STB_WEAK":
                undefined.add(symbol.name)
    return _Symbols(libraries, undefined - {""}, defined - {""})


def _union(several: Iterable[_Symbols]) -> _Symbols:
    union = _Symbols(set(), set(), set())
    for symbols in several:
        union.libraries.update(symbols.libraries)
        union.undefined.update(symbols.undefined)
        union.defined.update(symbols.defined)
    return union


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)
