"""`python -m tests.fuzz --cases 2000 --seed 0`: no traceback, no hang, nothing lost.

Each case is drawn from the seed and its own number, so that `--case N` repeats it.
"""

import argparse
import collections
import faulthandler
import gc
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time

import tests.fuzz.environment  # noqa: F401 - before JAX is imported
from tests import compilation
from tests.fuzz import corpus, judge, values
from tests.fuzz.cases import KINDS, ORDER, VALID, Case
from tests.training.runs import shared_programs

_log = open(os.dup(2), "w")  # noqa: SIM115 - stderr is the case's while it runs
_MOST_STEPS = 40  # of a run that a config makes long
_SLOW = 10  # seconds of a case that is told
_MOST_MEMORY = 3 * 2**20  # KiB, above which compiled programs are dropped


def main() -> int:
    """Runs the cases; 1 if one has faults."""
    options = _options()
    compilation.write_whole_entries()
    from vit_jax.data import prepare

    prepare._REACH_TIMEOUT_S = 0.5  # most machines that run this have no network
    findings: dict[str, list[str]] = {}
    counts: collections.Counter[tuple[str, object]] = collections.Counter()
    seconds: dict[str, float] = collections.defaultdict(float)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, shared_programs():
        os.environ["HOME"] = str(pathlib.Path(scratch) / "home")
        whole = corpus.make(pathlib.Path(scratch) / "whole")
        if options.case is None:
            check_valid(whole, pathlib.Path(scratch))
        began = time.monotonic()
        try:
            for number in _numbers(options):
                kind = ORDER[number % len(ORDER)]
                case, ended, faults = run_case(number, options.seed, whole, pathlib.Path(scratch))
                counts[kind, ended.status] += 1
                seconds[kind] += ended.seconds
                if ended.seconds > _SLOW:
                    print(f"{kind} {number}: {ended.seconds:.0f} s", flush=True)
                if faults or options.case is not None:
                    findings[f"{kind} {number}"] = faults
                    _show(kind, number, case, ended, faults)
                if number % 100 == 99:
                    opened = len(os.listdir("/proc/self/fd"))
                    took = time.monotonic() - began
                    print(f"{number + 1} cases, {took:.0f} s, {opened} files open", flush=True)
                _free_memory()
        finally:  # also of a fuzzer that is stopped by Ctrl-C
            _print_counts(counts, seconds, findings)
    return 1 if any(findings.values()) else 0


def check_valid(whole: pathlib.Path, scratch: pathlib.Path) -> None:
    """Raises unless each command line that is to be damaged ends well as it is."""
    bad = 0
    for words in VALID:
        case = Case(list(words))
        place = shutil.copytree(whole, scratch / "valid")
        before = judge.snapshot(place)
        ended = judge.run(case, place)
        faults = judge.faults(case, ended, before, place, whole)
        if faults or ended.status != 0:
            _show("valid", 0, case, ended, faults)
            bad += 1
        shutil.rmtree(place)
    if bad:
        raise AssertionError(f"{bad} command lines that nobody damaged do not end well")


def run_case(
    number: int, seed: int, whole: pathlib.Path, scratch: pathlib.Path
) -> tuple[Case, judge.Ended, list[str]]:
    """Makes case `number`, runs it and judges it."""
    rng = random.Random(f"{seed}:{number}")
    parent = scratch / f"case{number}"
    place = parent / "inside"  # so that ".." is its own too
    shutil.copytree(whole, place, symlinks=True)
    values.oddities(place)
    case = KINDS[ORDER[number % len(ORDER)]](place, rng)
    before = judge.snapshot(place)
    # Where a call of C waits, nothing in Python hears the alarm: this ends the fuzzer.
    faulthandler.dump_traceback_later(2 * judge.LIMIT, exit=True, file=_log)
    with corpus.stopping_after(_MOST_STEPS):
        ended = judge.run(case, place)
    faulthandler.cancel_dump_traceback_later()
    faults = judge.faults(case, ended, before, place, whole)
    shutil.rmtree(parent)
    return case, ended, faults


def _numbers(options: argparse.Namespace) -> list[int]:
    if options.case is not None:
        return [options.case]
    numbers = range(options.start, options.start + options.cases)
    return [n for n in numbers if options.only in (None, ORDER[n % len(ORDER)])]


def _show(kind: str, number: int, case: Case, ended: judge.Ended, faults: list[str]) -> None:
    words = " ".join(repr(word[:80]) for word in case.arguments)
    print(f"\n{kind} {number}: {words}\n  damaged: {'; '.join(case.notes) or '-'}")
    print(f"  status {ended.status}, {ended.seconds:.1f} s")
    for fault in faults:
        print(f"  FAULT {fault}")
    for name in ("out", "err"):
        text = getattr(ended, name).strip()
        if text:
            shown = text if len(text) < 2500 else f"{text[:900]}\n[...]\n{text[-1500:]}"
            print(f"  {name}: " + shown.replace("\n", "\n       "))
    sys.stdout.flush()


def _print_counts(
    counts: collections.Counter[tuple[str, object]],
    seconds: dict[str, float],
    findings: dict[str, list[str]],
) -> None:
    print(f"\n{'kind':<10} {'cases':>6} {'seconds':>8} {'faulty':>7}  by status")
    for kind in KINDS:
        of_kind = {status: n for (name, status), n in counts.items() if name == kind}
        if of_kind:
            faulty = sum(bool(f) for name, f in findings.items() if name.split()[0] == kind)
            each = ", ".join(f"{status}: {n}" for status, n in sorted(of_kind.items(), key=str))
            total = sum(of_kind.values())
            print(f"{kind:<10} {total:>6} {seconds[kind]:>8.0f} {faulty:>7}  {each}")


def _free_memory() -> None:
    if int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4 > _MOST_MEMORY:
        import jax

        jax.clear_caches()
        gc.collect()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(KINDS), help="cases of this kind")
    parser.add_argument("--case", type=int, help="this one alone, and show all of it")
    parser.add_argument("--start", type=int, default=0, help="the first case")
    return parser.parse_args()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
