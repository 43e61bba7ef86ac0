"""Runs the planted faults and the clean pairs and says how many are found, placed and explained.

    python -m tests.parity.planted [--faults] [--clean] [--only TEXT] [--jsonl FILE]

Without `--faults` or `--clean` both are run. Every diagnosis is printed beside the truth: whether
one that no row accepts is false is for a person to judge.
"""

import argparse
import collections
import json
import os
import traceback
from pathlib import Path
from typing import Any

from tests import compilation

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(compilation.variables())

import torch

from tests.parity.planted.base import Clean, Fault, can_run
from tests.parity.planted.judge import judge_clean, judge_fault
from tests.parity.planted.table import CLEAN, FAULTS


def _crash(name: str, error: Exception) -> dict[str, Any]:
    at = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {str(error)[:300]} ({Path(at.filename).name}:{at.lineno})"
    return {"name": name, "crash": text, "seconds": 0.0}


def _run(rows: list[Any], judge: Any, show: Any, file: Any) -> list[dict[str, Any]]:
    done = []
    for row in rows:
        try:
            found = judge(row)
        except Exception as error:
            found = _crash(row.name, error)
        done.append(found)
        show(row, found)
        if file is not None:
            file.write(json.dumps(found) + "\n")
            file.flush()
    return done


def _show_fault(row: Fault, found: dict[str, Any]) -> None:
    if "crash" in found:
        print(f"CRASH      {row.name}\n    {found['crash']}", flush=True)
        return
    words = [word for word in ("found", "placed", "explained") if found[word]]
    judge = "  TO JUDGE" if found["to_judge"] else ""
    print(f"{' '.join(words) or 'NOT FOUND':<22} {row.name}  {found['seconds']:.1f} s{judge}")
    print(f"    truth: {row.truth}")
    if not found["placed"]:
        wanted = sorted(stage or "the model" for stage in row.stages)
        print(f"    place: {found['stage']!r}, {found['where']}; wanted {wanted}")
    if found["fault"]:
        complete = "complete" if found["complete"] else "in part"
        print(f"    says:  {found['fault']} ({complete}): {found['text']}", flush=True)


def _show_clean(row: Clean, found: dict[str, Any]) -> None:
    if "crash" in found:
        print(f"CRASH        {row.name}\n    {found['crash']}", flush=True)
        return
    print(f"{'clean' if found['ok'] else 'FALSE ALARM':<12} {row.name}  {found['seconds']:.1f} s")
    if not found["ok"]:
        print(f"    {found['first']}; {found['fault']}: {found['text']}", flush=True)


def _chosen(rows: dict[str, Any], only: str | None) -> tuple[list[Any], list[Any]]:
    named = [row for row in rows.values() if only is None or only in row.name]
    return [r for r in named if can_run(r)], [r for r in named if not can_run(r)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", action="store_true", help="the planted faults alone")
    parser.add_argument("--clean", action="store_true", help="the clean pairs alone")
    parser.add_argument("--only", help="rows with this text in their name")
    parser.add_argument("--jsonl", type=Path, help="also write a line for each row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    both = options.faults == options.clean
    file = options.jsonl.open("w") if options.jsonl is not None else None
    summary = []
    if both or options.faults:
        rows, left = _chosen(FAULTS, options.only)
        done = _run(rows, judge_fault, _show_fault, file)
        count = collections.Counter(
            word
            for found in done
            for word in ("found", "placed", "explained", "to_judge", "crash")
            if found.get(word)
        )
        summary.append(
            f"{len(rows)} faults in {len({row.arch for row in rows})} architectures: "
            f"found {count['found']}, placed {count['placed']}, explained {count['explained']}, "
            f"to judge {count['to_judge']}, crashed {count['crash']}, "
            f"left out {len(left)}; {sum(f['seconds'] for f in done):.0f} s"
        )
    if both or options.clean:
        rows, left = _chosen(CLEAN, options.only)
        done = _run(rows, judge_clean, _show_clean, file)
        alarms = [found["name"] for found in done if found.get("ok") is False]
        crashed = [found["name"] for found in done if "crash" in found]
        summary.append(
            f"{len(rows)} clean pairs: {len(alarms)} false alarms {alarms}, "
            f"{len(crashed)} crashed {crashed}, "
            f"left out {[f'{row.name} ({row.needs})' for row in left]}; "
            f"{sum(f['seconds'] for f in done):.0f} s"
        )
    print("\n" + "\n".join(summary))


if __name__ == "__main__":
    main()
