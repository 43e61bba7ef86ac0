"""Interleaved timing of compiled functions."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each call: the median over `rounds` rounds, each of which runs every call once.

    Interleaved, so that what disturbs the machine disturbs all alike. Each call ran once before.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
