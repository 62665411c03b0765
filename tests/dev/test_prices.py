"""The price table: what counts as an evaluation, and what its columns are made of."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest

from dev.speed import prices
from dev.speed.prices import BASELINE, Made, Setting


@pytest.mark.parametrize(
    ("setting", "evaluations"),
    [(Setting(50), 50), (Setting(50, 2), 37.5), (Setting(50, 4), 31.5), (Setting(3, 2), 2.5), (Setting(3, 9), 2)],
)
def test_an_evaluation_without_the_negative_prompt_is_half_a_one(setting, evaluations):
    assert setting.evaluations == evaluations


def test_the_columns(monkeypatch):
    """Of pictures that are one level off, and of which the last is wrong."""

    def make(pipe, chosen, setting):
        assert len(chosen) == 6 and [case.edit is None for case in chosen] == [True] * 4 + [False] * 2
        picture = np.full((2, 2, 3), 100 if setting == BASELINE else 101, np.uint8)
        return Made([picture] * 6, [True] * 5 + [setting == BASELINE])

    monkeypatch.setattr(prices, "load", lambda folder: MagicMock())
    monkeypatch.setattr(prices, "make", make)
    lines = prices.table(4, 2, (BASELINE, Setting(25, 5))).splitlines()
    assert lines[2] == "| 50 steps | 50.0 | 1.00 x | 1.000 | 1.000 | (same) |  | 0 |"
    # The PSNR is 20 log10(255).
    assert lines[3] == "| 25 steps, `guidance_every` 5 | 15.0 | 3.33 x | 1.000 | 0.500 | 48.1 | 48.1 | 1 |"
