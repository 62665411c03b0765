"""How the modules hang together: no circle anywhere, and who may import whom.

Every import counts, also those inside functions and under TYPE_CHECKING. docs/architecture.md draws the same picture.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("deepgen_npu", "nodes", "training", "dev", "docs")
LIBRARY = "deepgen_npu"
COMFYUI = ("comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes", "server")

Imports = dict[str, set[str]]
"""The names that each module imports: modules, or names in modules."""

LIBRARY_ROOMS = (LIBRARY, "deepgen_npu.checkpoint", "deepgen_npu.hub")


def quantization(*modules: str) -> tuple[str, ...]:
    return tuple(f"deepgen_npu.quantization.{module}" for module in modules)


MAY_IMPORT = {
    "deepgen_npu.model": (),
    "deepgen_npu.hub": (LIBRARY,),
    "deepgen_npu.quantization": tuple(
        f"deepgen_npu.{module}" for module in ("checks", "dtypes", "errors", "formatting")
    ),
    "deepgen_npu.checkpoint": (
        *LIBRARY_ROOMS,
        *(f"deepgen_npu.model.{module}" for module in ("architecture", "connector", "positions", "projections")),
        *quantization("formats", "linear", "support"),
    ),
    "deepgen_npu.lora": (LIBRARY, "deepgen_npu.checkpoint"),
    "deepgen_npu.edits": tuple(f"deepgen_npu.{module}" for module in ("checks", "images", "rgb", "sizes")),
    "deepgen_npu": (
        *LIBRARY_ROOMS,
        "deepgen_npu.model",
        "deepgen_npu.lora",
        "deepgen_npu.edits",
        *quantization("linear", "support"),
    ),
    "deepgen_npu.tools": (
        *LIBRARY_ROOMS,
        *(f"deepgen_npu.model.{module}" for module in ("architecture", "positions")),
        *(f"deepgen_npu.lora.{module}" for module in ("file", "names")),
        *quantization("formats", "layers", "values"),
    ),
    "deepgen_npu.tools.batch": (
        *LIBRARY_ROOMS,
        *(f"deepgen_npu.tools.{module}" for module in ("doctor", "fingerprint", "specs")),
        "deepgen_npu.lora.file",
    ),
    "deepgen_npu.cli": (
        *LIBRARY_ROOMS,
        "deepgen_npu.tools",
        "deepgen_npu.tools.batch",
        "deepgen_npu.lora.file",
        *quantization("formats", "layers"),
    ),
    "deepgen_npu.__main__": ("deepgen_npu.cli",),
    "nodes.names": (),
    "nodes.vae": (*LIBRARY_ROOMS, "nodes", "deepgen_npu.model.autoencoder"),
    "nodes.native": (
        *LIBRARY_ROOMS,
        "deepgen_npu.model",
        "deepgen_npu.lora",
        *quantization("formats", "linear"),
        "nodes.images",
        "nodes.reading",
    ),
    "nodes": (*LIBRARY_ROOMS, "deepgen_npu.edits", "nodes.names", "nodes.native", "nodes.vae"),
    "training": (*LIBRARY_ROOMS, "deepgen_npu.model", "deepgen_npu.tools"),
    "dev": (
        *LIBRARY_ROOMS,
        "deepgen_npu.model",
        "deepgen_npu.quantization",
        "deepgen_npu.edits",
        "deepgen_npu.tools",
        "deepgen_npu.tools.batch",
        "nodes.names",
        "training",
    ),
    "docs": (LIBRARY,),
}
"""Rooms, and what each may import besides itself. A module is in the room with the longest name that it begins with:
`deepgen_npu` stands for the files that lie directly in it."""


def modules_in(root: Path, *packages: str) -> dict[str, Path]:
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(module: str, path: Path) -> Iterator[str]:
    """Absolute names: ``a.b.c`` for ``from a.b import c``, whether c is a module or not."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(modules: Mapping[str, Path]) -> Imports:
    """Which of the modules each imports."""
    graph: Imports = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imported_names(module, path):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                graph[module].add(target)
    return graph


def circles(graph: Imports) -> list[list[str]]:
    """Sets of modules that import each other, however many steps it takes."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {module: reachable(module) for module in graph}
    found = {frozenset(other for other in reach[one] if one in reach[other]) for one in graph if one in reach[one]}
    return sorted(sorted(circle) for circle in found)


def room_of(module: str) -> str:
    parts = module.split(".")
    prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(prefix for prefix in prefixes if prefix in MAY_IMPORT)


def trespasses(graph: Imports) -> list[str]:
    """Imports that the table does not allow."""
    found = []
    for module, targets in graph.items():
        room = room_of(module)
        for target in targets:
            if not {room_of(target), target} & {room, *MAY_IMPORT[room]}:
                found.append(f"{module} imports {target}")
    return sorted(found)


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    found = modules_in(ROOT, *PACKAGES)
    assert len(found) > 130, "the folders were not found"
    return found


@pytest.fixture(scope="module")
def graph(modules) -> Imports:
    graph = import_graph(modules)
    assert sum(map(len, graph.values())) > 350, "the imports were not found"
    return graph


def test_no_module_imports_in_a_circle(graph):
    assert circles(graph) == []


def test_nobody_imports_what_is_above(graph):
    assert trespasses(graph) == []


@pytest.mark.parametrize(
    ("module", "target", "makes_a_circle", "is_above"),
    [
        ("deepgen_npu.guidance", "deepgen_npu.denoising", True, False),
        ("deepgen_npu.checkpoint.folder", "deepgen_npu.checkpoint.weights", True, False),
        ("deepgen_npu.pipeline", "deepgen_npu.tools.bench", True, True),
        ("deepgen_npu.model.ops", "deepgen_npu.checks", False, True),
        ("deepgen_npu.quantization.linear", "deepgen_npu.devices", False, True),
        ("deepgen_npu.tools.doctor", "deepgen_npu.cli.options", False, True),
        ("nodes.names", "deepgen_npu.checks", False, True),
        ("nodes.edit", "deepgen_npu.model.autoencoder", False, True),
        ("dev.soak", "nodes.stages", False, True),
    ],
)
def test_an_import_too_many_is_found(graph, module, target, makes_a_circle, is_above):
    more = {**graph, module: graph[module] | {target}}
    assert bool(circles(more)) is makes_a_circle
    assert bool(trespasses(more)) is is_above


def test_nothing_imports_the_tests(modules):
    top = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests"}
    for module, path in modules.items():
        assert not {name.partition(".")[0] for name in imported_names(module, path)} & top, module


def test_the_library_never_imports_comfyui(modules):
    for module, path in modules.items():
        if module.split(".")[0] == LIBRARY:
            assert not {name.partition(".")[0] for name in imported_names(module, path)} & set(COMFYUI), module


def test_no_folder_is_added_to_the_path_of_modules(modules):
    """But by what runs inside ComfyUI, and by the simulator, for the metadata that diffusers reads."""
    edits = set()
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "path" and ast.unparse(node.value) == "sys":
                edits.add(module)
    assert edits == {"dev.comfyui.launch", "dev.npu_simulator.simulated_torch_npu"}


def test_the_architecture_page_names_every_file():
    """A phrase for each file of the pack, in the tree of docs/architecture.md; nothing there that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## The tree")[1].split("```")[1]
    listed, folders = set(), [""]
    for line in filter(None, tree.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth + 1 :] = [f"{folders[depth]}{name}"]
        assert name.endswith("/") or len(line.split()) > 1, line
        listed |= {f"{folders[depth]}{name}"} if name.endswith(".py") else set()
    there = {path.relative_to(ROOT).as_posix() for path in modules_in(ROOT, "deepgen_npu", "nodes").values()}
    rooms = {name for name in there if name.endswith("/__init__.py")} - {"deepgen_npu/__init__.py"}
    assert listed == (there - rooms) | {"__init__.py", "inference.py"}
