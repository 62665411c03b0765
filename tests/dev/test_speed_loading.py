"""The table of loading, without the processes that measure: medians, the worst memory, and the limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from platforms import linux_only

from dev.speed import loading


pytestmark = linux_only("peaks are read from /proc")


@pytest.fixture
def runs(monkeypatch):
    """What each process measures; returns what was run, in order. Its resident bytes can be changed."""
    done: list[str] = []
    resident = {"ours": 100, "read": 100, "libraries": 200}

    def measure(way: str, folder: Path, dtype: str) -> dict[str, object]:
        done.append(way)
        number = done.count(way)
        seconds = {"load": number, "touch": 0.5, "both": number + 0.5, "wall": 10 * number}
        memory = {"weights": 2**30, "resident": resident[way] * 2**30 // 100 + number, "anonymous": 0}
        return {**seconds, **memory, "ratio": memory["resident"] / 2**30, "source": "VmHWM", "versions": "torch 2"}

    monkeypatch.setattr(loading, "_checkpoint", lambda folder, size: folder)
    monkeypatch.setattr(loading, "_read_once", lambda folder: None)
    monkeypatch.setattr(loading, "_measure_in_child", measure)
    return done, resident


def test_contestants_take_turns(runs):
    done, _ = runs
    lines = loading.table(dtypes=["bfloat16"], repeats=3).splitlines()
    assert done == ["ours", "read", "libraries"] * 3
    assert [line.split(" | ")[1] for line in lines[2:5]] == list(loading.WAYS.values())
    assert lines[2].endswith("| 1.000 | 2.00 | 0.50 | 2.50 | 20.00 |")
    assert lines[-1] == "Versions: torch 2. Peak memory was read from VmHWM."


def test_more_than_the_limit_is_an_error(runs):
    _, resident = runs
    resident["ours"] = 116
    with pytest.raises(SystemExit, match=r"(?s)^\| dtype .*Over the limit: DeepGenPipeline\.from_pretrained in bfloa"):
        loading.table(dtypes=["bfloat16"], repeats=1)
