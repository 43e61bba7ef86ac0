"""Which cases of a test every run goes through, and which only `pytest -m ''` does."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """The parameters `cases`, marked slow unless they are in `fast`.

    For many cases of one kind, each of which takes seconds to compile; what they have in common
    fails in the fast ones too.
    """
    cases = list(cases)
    if unknown := [case for case in fast if case not in cases]:
        raise ValueError(f"no cases of this test: {unknown}")
    marks = [() if case in fast else (pytest.mark.slow,) for case in cases]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)
        for case, mark in zip(cases, marks, strict=True)
    ]
