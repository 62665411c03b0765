"""The findings of nodesafe that nodesafe.json does not explain."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any


EXPLAINED = Path(__file__).with_name("nodesafe.json")
ENTROPY = "code_obfuscation_high_entropy"
LONGEST_WORD = 30


def _literals(node: ast.AST) -> str:
    return "".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is str)


def is_readable(source: str, line: int) -> bool:
    """Whether the longest string that begins at a line is made of words, as messages and docstrings are.

    nodesafe takes any long string of many different letters for hidden code. Hidden code has no gaps; words are
    separated by spaces, and names of files and variables by these characters.
    """
    strings = [
        _literals(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.lineno == line
    ]
    words = re.split(r"[\s_=:/<>`().,'-]+", max(strings, key=len, default=""))
    return len(words) > 3 and max(map(len, words)) <= LONGEST_WORD


def unexplained(report: str, tree: Path) -> tuple[list[str], int]:
    """Problems, one per line, and the number of explained findings.

    An explanation that fits nothing is a problem, too, so that none outlives its finding.

    Args:
        report: The output of ``nodesafe scan . --format json``.
        tree: The folder that was scanned.
    """
    findings: list[dict[str, Any]] = json.loads(report[report.index("{") :])["findings"]
    rules: list[dict[str, str]] = json.loads(EXPLAINED.read_text(encoding="utf-8"))["explained"]
    unused = {rule["snippet"] for rule in rules}
    problems = []
    for found in findings:
        file, line, category, snippet = (found[key] for key in ("file", "line", "category", "snippet"))
        fitting = [
            rule
            for rule in rules
            if rule["category"] == category
            and rule.get("file", file) == file
            and re.fullmatch(rule["snippet"], (snippet or "").strip())
        ]
        unused -= {rule["snippet"] for rule in fitting}
        readable = category == ENTROPY and is_readable((tree / file).read_text(encoding="utf-8"), line)
        if not fitting and not readable:
            problems.append(f"{file}:{line}: {found['severity']} {category}: {found['title']}: {snippet}")
    explained = len(findings) - len(problems)
    return problems + [f"nodesafe.json: no finding fits {snippet!r}" for snippet in sorted(unused)], explained
