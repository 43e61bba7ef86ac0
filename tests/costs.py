"""What tests cost, by test and summed by folder or file.

    pytest -p tests.costs --costs=DIR
    python -m tests.costs DIR [--by folder|file|test]

A test's CPU seconds are those of its process and of the child processes it waited for.
"""

import argparse
import collections
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_COLUMNS = ("tests", "cpu_s", "wall_s", "compilations", "compile_s")
_counts: collections.Counter[str] = collections.Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, required=True, help="folder for a file a worker")


def pytest_configure(config: pytest.Config) -> None:
    import jax

    jax.monitoring.register_event_duration_secs_listener(_count)
    config.getoption("--costs").mkdir(parents=True, exist_ok=True)


def _count(event: str, seconds: float, **_: object) -> None:
    if event.endswith("backend_compile_duration"):  # a hit of the disk cache counts too
        _counts["compilations"] += 1
        _counts["compile_s"] += seconds


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    counts, cpu, wall = _counts.copy(), _cpu_seconds(), time.perf_counter()
    try:
        return (yield)
    finally:
        row = {
            "id": item.nodeid,
            "tests": 1,
            "cpu_s": _cpu_seconds() - cpu,
            "wall_s": time.perf_counter() - wall,
            "compilations": _counts["compilations"] - counts["compilations"],
            "compile_s": _counts["compile_s"] - counts["compile_s"],
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with (item.config.getoption("--costs") / f"{worker}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def _key(node_id: str, by: str) -> str:
    path = node_id.partition("::")[0]
    if by == "folder":
        return "/".join(path.split("/")[:-1][:2])
    return path if by == "file" else node_id.partition("[")[0].partition("@")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="The costs of tests as a table.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=["folder", "file", "test"], default="folder")
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    sums: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        for key in (_key(row["id"], options.by), "all"):
            sums[key].update({column: row[column] for column in _COLUMNS})
    print(f"| {options.by} |", " | ".join(_COLUMNS), "|")
    print("|---" + "|---:" * len(_COLUMNS) + "|")
    for key, costs in sorted(sums.items(), key=lambda item: -item[1]["cpu_s"]):
        print(f"| {key} |", " | ".join(f"{costs[column]:,.0f}" for column in _COLUMNS), "|")
    print(f"\npeak memory of a worker: {max(row['peak_mib'] for row in rows):,.0f} MiB")


if __name__ == "__main__":
    main()
