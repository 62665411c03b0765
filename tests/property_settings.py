"""Property-based tests: how many cases each draws, and how a failure can be drawn again.

A test of a class of bad input draws its inputs from a description of the class, never from a list. Each states its
share of cases with `cases`; DEEPGEN_PROPERTY_CASES multiplies all shares, for a long campaign. A failure prints how to
draw it again: hypothesis's ``@reproduce_failure`` line, or the ``--hypothesis-seed`` of the whole run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings


FACTOR = float(os.environ.get("DEEPGEN_PROPERTY_CASES", "1"))

drawn: Counter[str] = Counter()
"""Cases by class, for the table at the end of the run; a test calls ``drawn[CLASS] += 1`` in each case."""


def cases(count: int) -> Callable[[Any], Any]:
    """Settings of a property-based test: so many cases, times the factor; no clock, no database on disk."""
    return settings(
        max_examples=max(1, round(count * FACTOR)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
