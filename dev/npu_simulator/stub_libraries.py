"""Stand-ins for the shared libraries of CANN, with which the installed torch_npu loads on a machine without CANN.

The ELF files of the wheel show what is missing: libraries that do not exist here, and functions that no library
defines. `acl_stub.c` implements those that torch_npu needs to work; every other one becomes a stub that returns an
error. Nothing of CANN is copied. torch is not imported here: without these libraries it may not load.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile


SOURCE = Path(__file__).with_name("acl_stub.c")
_STUB = """
long stub{number}(void) __asm__("{name}");
long stub{number}(void) {{ ascend_stub_trace("{name}"); return 507008; }}
"""
_COMMON = "libascendstub.so"  # has all functions; the libraries with the names of CANN link to it
_SYSTEM = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")


@dataclass(frozen=True)
class _Symbols:
    libraries: set[str]
    undefined: set[str]
    defined: set[str]


def write(folder: Path, site_packages: Path) -> list[str]:
    """Compile the libraries into a folder and return their names.

    Args:
        folder: Of the libraries.
        site_packages: Where torch and torch_npu are installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "cc")
    libraries, functions = missing(site_packages)

    known = folder / "acl_stub.o"
    _run(compiler, "-O1", "-w", "-fPIC", "-c", "-o", known, SOURCE)
    others = folder / "others.c"
    names = sorted(functions - _symbols(known, ".symtab").defined)
    stubs = (_STUB.format(number=number, name=name) for number, name in enumerate(names))
    others.write_text("void ascend_stub_trace(const char *name);\n" + "".join(stubs), encoding="utf-8")
    common = folder / _COMMON
    _run(compiler, "-O1", "-w", "-fPIC", "-shared", f"-Wl,-soname,{_COMMON}", "-o", common, known, others)

    empty = folder / "empty.c"
    empty.write_text("static int unused;\n", encoding="utf-8")
    for library in libraries:
        # Nothing in it uses the common library, hence --no-as-needed.
        link = (f"-Wl,-soname,{library}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN")
        _run(compiler, "-w", "-fPIC", "-shared", *link, "-o", folder / library, empty, common)
    return libraries


def missing(site_packages: Path) -> tuple[list[str], set[str]]:
    """The libraries that torch_npu needs and this machine lacks, and the functions that no library defines."""
    own = sorted((site_packages / "torch_npu").rglob("*.so"))
    wheel = _union(_symbols(path, ".dynsym") for path in own)
    places = [site_packages / "torch" / "lib", *(Path("/", place) for place in _SYSTEM), Path("/lib64"), Path("/lib")]
    present: dict[str, Path | None] = {path.name: None for path in own}
    for name in wheel.libraries - present.keys():
        found = [place / name for place in places if (place / name).exists()]
        if found:
            present[name] = found[0]
    system = _union(_symbols(path, ".dynsym") for path in present.values() if path is not None)
    undefined = wheel.undefined - wheel.defined - system.defined
    # The functions of Python are in the interpreter.
    functions = {name for name in undefined if not name.startswith(("Py", "_Py"))}
    return sorted(wheel.libraries - present.keys()), functions


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
