"""The table of CPU time: that it measures the same thing for all, not what it measures."""

from __future__ import annotations

from dev.speed.cpu import table


def test_all_compute_the_same():
    rows = [
        line.strip("| ").split(" | ") for line in table(repeats=2, steps=2, heads=1, side=8, tokens=5).splitlines()
    ]
    assert [row[0] for row in rows[2:]] == [
        f"{dtype}, {task}" for dtype in ("float32", "bfloat16") for task in ("text to image", "edit, 1 reference")
    ]
    for text_to_image, edit in (rows[2:4], rows[4:6]):
        for cell in (*text_to_image[2:4], edit[2]):
            middle, span = cell.split(" ")
            least, most = map(float, span.strip("[]").split("-"))
            assert 0 < least <= float(middle) <= most
        assert edit[3].strip() == ""
    assert all(float(row[4]) < 1e-3 for row in rows[2:4])
