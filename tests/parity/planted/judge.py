"""What a comparison said of a row, held against the truth."""

import re
import time
from typing import Any

from tests.parity.planted.base import Clean, Fault, run_clean, run_fault
from tests.parity.planted.judged import JUDGED
from vit_jax.parity import Report


def _facts(name: str, report: Report, seconds: float) -> dict[str, Any]:
    diagnosis, first = report.diagnosis, report.first
    return {
        "name": name,
        "stage": report.stage,
        "where": report.where,
        "first": None
        if first is None
        else f"{first.section} {first.precision} {first.name!r}: {first.relative:.1e}",
        "fault": None if diagnosis is None else diagnosis.fault,
        "text": None if diagnosis is None else diagnosis.text,
        "complete": None if diagnosis is None else diagnosis.complete,
        "notes": list(report.notes),
        "seconds": round(seconds, 2),
    }


def judge_fault(row: Fault) -> dict[str, Any]:
    """Whether the fault is found, placed and explained; see `Fault`."""
    start = time.perf_counter()
    report = run_fault(row)
    facts = _facts(row.name, report, time.perf_counter() - start)
    stage = None if report.stage is None else re.sub(r"#\d+", "", report.stage)
    diagnosis = report.diagnosis
    explained = diagnosis is not None and (
        row.explained_by(diagnosis.fault, diagnosis.text)
        or diagnosis.fault in JUDGED.get(row.name, ())
    )
    return {
        **facts,
        "found": not report.ok,
        "placed": stage in row.stages,
        "explained": explained,
        # With one of two faults out the other departs, unless the text goes on to name it.
        "to_judge": diagnosis is not None
        and (
            not explained
            or (row.is_pair and diagnosis.complete and "further, in" not in diagnosis.text)
        ),
        "truth": row.truth,
    }


def judge_clean(row: Clean) -> dict[str, Any]:
    start = time.perf_counter()
    report = run_clean(row)
    return {**_facts(row.name, report, time.perf_counter() - start), "ok": report.ok}
