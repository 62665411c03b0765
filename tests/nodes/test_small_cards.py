"""What `dev.small_cards` measures, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.comfyui.checkouts import Checkout, find_checkouts
from dev.small_cards import LARGE, Card, Row, faults, measure, parse, table


PARTS = ["vlm", "connector", "transformer", "vae", "vlm", "connector", "vae", "transformer", "vae"]
"""In the order in which they are loaded: for an image from text, and for an edit."""


def rows_of(checkout: Checkout, results: Path, *options: str) -> list[Row]:
    """Of the smallest model on a card on which nothing stays."""
    arguments = parse(["--model", "tiny", "--size", "128", *options])
    rows, status = measure(checkout, Card(4, ("--novram",)), arguments, results)
    assert status == 0
    assert [row["part"] for row in rows] == PARTS
    return rows


@pytest.mark.slow
def test_weights_cross_the_bus_and_nothing_stays(checkout, tmp_path):
    rows = rows_of(checkout, tmp_path / "results.pt")
    for row, before in zip(rows, [None, *PARTS], strict=False):
        if row["part"] != "vae":
            assert row["resident"] < row["weights"] / 50
            assert row["to_card"] > row["weights"] / 20
        if before not in ("vlm", "connector"):  # whose results go to the next part
            assert row["left"] < 1024, f"the {before} left something on the card"
    assert "| edit | 1 | transformer |" in table(rows)
    # To run twice as long for each version would show nothing more.
    if checkout == find_checkouts()[-1]:
        computed = rows_of(checkout, tmp_path / "results.pt", "--arithmetic")
        for row, expected in zip(rows, computed, strict=True):
            latents = 4 * 16 * (128 // 8) ** 2 if row["part"] == "transformer" else 0
            assert expected["activations"] <= row["activations"] <= expected["activations"] + latents, row
            for what in ("resident", "others", "left", "to_card", "step"):
                assert row[what] == expected[what], (what, row)


def test_faults():
    row = {"run": "edit", "references": 1, "part": "vlm", "peak": 1 << 30, "estimate": 10.0, "activations": 10}
    assert not [*faults(Card(LARGE), [row]), *faults(Card(2, ("--novram",)), [row])]
    (large,) = faults(Card(LARGE), [row | {"activations": 20}])
    assert large == "edit, 1 references: the estimate of the vlm is 0.50 of its peak"
    (resident,) = faults(Card(2, ("--novram",)), [row | {"peak": 3 << 29}])
    assert resident == "the text encoder needs 1.50 GiB with nothing resident"
    assert list(faults(Card(2, ("--novram",)), [])), "no measurement at all"
    assert not list(faults(Card(2), [row | {"peak": 3 << 29, "activations": 20}])), "other cards have no limit"
