"""Which tests run on one library pair alone: the list in the Makefile."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
(LISTED,) = re.findall(r"^ON_ONE_PAIR := ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
FILES = {f"test_{name}" for name in LISTED.replace("\\", " ").split()}
DIFFERENT = {"diffusers", "transformers", "tokenizers", "huggingface_hub", "accelerate"}
"""Packages of which the pairs have different versions. Tests of what asks for a version may import them."""


def imported(path: Path) -> set[str]:
    """Packages that the file imports at its top."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda path: path.stem)
def test_what_uses_the_libraries_runs_on_both_pairs(path):
    if path.stem in FILES:
        assert not imported(path) & DIFFERENT, f"strike {path.stem} from ON_ONE_PAIR in the Makefile"


def test_the_tests_of_the_model_run_on_both_pairs():
    must = (
        *("golden", "pipeline", "checkpoint", "random_checkpoint", "encoding_cache", "transformer"),
        *("vision_tower", "vision_language", "simulated", "download"),
    )
    assert not FILES & {f"test_{name}" for name in must}


def test_every_entry_is_a_file():
    """A file that was renamed would otherwise run on both pairs without anybody having decided it."""
    assert {path.stem for path in Path(__file__).parent.rglob("test_*.py")} >= FILES
