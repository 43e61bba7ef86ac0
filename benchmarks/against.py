"""What has become slower, or holds more memory, since a result of `benchmarks.run` was kept."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from benchmarks.contestants import BASE, Workload
from benchmarks.measure import Timing

OURS = "vit_jax"
TOLERATED = 0.1
# By workload and form, then by contestant.
Timings = Mapping[tuple[str, str], Mapping[str, Timing]]


@dataclasses.dataclass(frozen=True)
class Change:
    """One figure of one workload, then and now.

    Attributes:
      name: of the workload and what was computed of it.
      figure: "speed", times as fast as PyTorch eager in the same run, the median of the rounds; or
        "peak", MiB that our process held at most.
      is_worse: by more than `TOLERATED`. Of a speed the upper quartile now is also below the lower
        quartile then, so that one slow round is no verdict.
    """

    name: str
    figure: str
    before: float
    now: float
    is_worse: bool


def read_timings(path: pathlib.Path, suite: str) -> Timings:
    """What a file of `benchmarks.run --out` holds.

    Raises:
      ValueError: the file is none, or of another suite; in one line.
    """
    wanted = f"--against: wanted the JSON file of an earlier --suite {suite} --out, got {path}"
    try:
        report = json.loads(path.read_text())
        found = report["suite"]
        timings: Timings = {
            (Workload(**result["work"]).name, result["form"]): {
                one["contestant"]: Timing(**one) for one in result["timings"]
            }
            for result in report.get("results", [])
        }
    except OSError as error:
        raise ValueError(f"{wanted}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{wanted}, which is none") from None
    if found != suite:
        raise ValueError(f"{wanted}, which is of --suite {found}")
    for (name, form), contestants in timings.items():
        if len({len(one.seconds) for one in contestants.values()}) > 1:
            raise ValueError(f"{wanted}, whose contestants had unequal rounds in {name}, {form}")
    return timings


def check_comparable(before: Timings, works: Sequence[Workload], names: Sequence[str]) -> None:
    """Refuses, before minutes of measuring, what would leave nothing to compare.

    Raises:
      ValueError: in one line.
    """
    if missing := [name for name in (OURS, BASE) if name not in names]:
        raise ValueError(
            f"--against: wanted {OURS} and {BASE} among --contestants, got none of "
            f"{' and '.join(missing)}"
        )
    kept = sorted({name for (name, _), found in before.items() if _is_complete(found)})
    if not {work.name for work in works} & set(kept):
        raise ValueError(
            f"--against: wanted at least one workload of the file, which has "
            f"{'; '.join(kept) or 'none'}, got {'; '.join(work.name for work in works)}"
        )


def changes(before: Timings, now: Timings) -> Iterator[Change]:
    """Both figures of every workload that both hold, in the order of `now`."""
    for key, today in now.items():
        then = before.get(key, {})
        if not (_is_complete(then) and _is_complete(today)):
            continue
        name = ", ".join(key)
        old, new = _speeds(then), _speeds(today)
        slower = new[1] < old[1] * (1 - TOLERATED) and new[2] < old[0]
        yield Change(name, "speed", old[1], new[1], slower)
        held, holds = (found[OURS].peak_bytes / 2**20 for found in (then, today))
        yield Change(name, "peak", held, holds, holds > held * (1 + TOLERATED))


def _is_complete(found: Mapping[str, Timing]) -> bool:
    return OURS in found and BASE in found


def _speeds(found: Mapping[str, Timing]) -> list[float]:
    """The three quartiles of the rounds' speeds, of contestants who ran in turn."""
    rounds = zip(found[BASE].seconds, found[OURS].seconds, strict=True)
    speeds = [base / ours for base, ours in rounds]
    return statistics.quantiles(speeds, method="inclusive") if len(speeds) > 1 else 3 * speeds


def table(found: Sequence[Change], path: pathlib.Path) -> Table:
    """One row for each change; what is worse is in bold red."""
    shown = Table(title=f"against {path}", title_justify="left")
    shown.add_column("workload")
    shown.add_column("figure")
    for column in ("then", "now", "now / then"):
        shown.add_column(column, justify="right")
    shown.add_column("")
    for one in found:
        digits = ",.2f" if one.figure == "speed" else ",.0f"
        worse = "slower" if one.figure == "speed" else "more memory"
        shown.add_row(
            one.name,
            f"times {BASE}" if one.figure == "speed" else "peak, MiB",
            *(format(value, digits) for value in (one.before, one.now)),
            f"{one.now / one.before:.2f}",
            worse if one.is_worse else "",
            style="bold red" if one.is_worse else None,
        )
    return shown
