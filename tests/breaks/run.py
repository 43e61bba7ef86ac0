"""Plants each break of the table in a copy of the working tree and sees whether tests catch it.

    python -m tests.breaks.run [--only NAME ...] [--whole] [--report FILE.md]

A break is caught where pytest says that a test failed. Results are written as they come, so that a
run can be stopped and goes on where it was.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.breaks.table import BREAKS, Break

ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = 300.0  # seconds for the named tests of one break
# It looks at the table's texts, and would so catch every break.
_OF_THE_TABLE = (
    "tests/test_package.py::test_each_break_of_the_table_stands_where_it_is_to_be_planted"
)
_TESTS_FAILED = 1  # pytest's exit status; with any other no test was there to fail
_SHOWN = 60  # characters of a text in the report
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py::.+?)(?: - .*)?$", re.MULTILINE)
Result = dict[str, Any]


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of what git knows or would add; made sure of that it is what Python imports."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)
    with tempfile.TemporaryDirectory(prefix="vit-jax-breaks-") as directory:
        copy = Path(directory).resolve()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():  # what git still knows may be deleted
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        look = [sys.executable, "-c", "import vit_jax; print(vit_jax.__file__)"]
        found = subprocess.check_output(look, cwd="/", env=environment(copy), text=True).strip()
        if not Path(found).resolve().is_relative_to(copy):
            raise SystemExit(f"wanted the copy {copy} to be what is imported, got {found}")
        yield copy


def environment(copy: Path) -> dict[str, str]:
    """This process's, in which the copy goes before the installed package."""
    paths = [str(copy), *filter(None, [os.environ.get("PYTHONPATH")])]
    cache = {"VIT_JAX_TEST_CACHE": str(ROOT / ".cache" / "jax")}
    return cache | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def text_of(broken: Break, copy: Path) -> str:
    """The file as it is, which has to hold the break's old text once."""
    text = (copy / broken.file).read_text()
    if (count := text.count(broken.old)) != 1:
        raise SystemExit(f"{broken.name}: {broken.file} has {count} times {broken.old!r}, wanted 1")
    return text


def write(path: Path, text: str) -> None:
    """Writes a module, and removes what Python compiled, which it would tell by the second."""
    path.write_text(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def commands(tests: Sequence[str]) -> list[list[str]]:
    """Arguments of pytest for each run that is needed: an expression needs one of its own."""
    parts = [test.partition(" -k ") for test in dict.fromkeys(tests)]
    plain = [file for file, expression, _ in parts if not expression]
    return [plain] * bool(plain) + [[file, "-k", words] for file, _, words in parts if words]


def pytest(copy: Path, arguments: Sequence[str], timeout: float | None) -> tuple[int | None, str]:
    """The exit status, None where it did not end in time, and what was printed."""
    quietly = ["-q", "-p", "no:cacheprovider", "--color=no"]
    command = [sys.executable, "-m", "pytest", *quietly, f"--deselect={_OF_THE_TABLE}", *arguments]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command, cwd=copy, env=environment(copy), stdout=out, stderr=out, start_new_session=True
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # what tests have started and left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        return status, out.read()


def attempt(broken: Break, copy: Path, stage: str) -> Result:
    """Runs the tests, up to one that catches the break. An `error` is one of the table."""
    runs, timeout = [["-n", "auto"]], None
    if stage == "named":
        runs, timeout = [["-n0", *words] for words in commands(broken.tests)], _TIMEOUT
    began, by, error = time.monotonic(), "", ""
    path, text = copy / broken.file, text_of(broken, copy)
    write(path, text.replace(broken.old, broken.new))
    try:
        for arguments in runs:
            status, output = pytest(copy, ["-x", *arguments], timeout)
            failure = _FAILURE.search(output)
            if status == _TESTS_FAILED and failure:
                by, error = failure[1], ""
                break
            if status != 0:
                end = "did not end in time" if status is None else f"ended with status {status}"
                error = f"pytest {end}: {' '.join(output.split())[-300:]}"
    finally:
        write(path, text)
    took = round(time.monotonic() - began, 1)
    found = {"name": broken.name, "caught": bool(by), "by": by, "seconds": took, "stage": stage}
    return found | {"digest": broken.digest} | ({"error": error} if error else {})


def read(path: Path) -> dict[str, Result]:
    """The last result of each break that is in the table as it was then."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = {result["name"]: result for result in map(json.loads, lines)}
    known = {broken.name: broken.digest for broken in BREAKS}
    return {name: r for name, r in results.items() if r["digest"] == known.get(name)}


def is_settled(result: Result | None, stage: str) -> bool:
    """Whether a stage need not be run; where the table has a mistake, only the first one is."""
    if result is None or "error" in result:
        return result is not None and stage != "named"
    return result["caught"] or stage in ("named", result["stage"])


def try_all(chosen: Sequence[Break], path: Path, stages: Sequence[str]) -> None:
    """Tries what is not settled yet, each stage of a break where those before let it live."""
    results = read(path)
    with copied() as copy:
        for broken in chosen:
            text_of(broken, copy)
        for number, broken in enumerate(chosen, start=1):
            for stage in stages:
                if is_settled(results.get(broken.name), stage):
                    continue
                result = results[broken.name] = attempt(broken, copy, stage)
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                said = result["by"] or result.get("error", "nothing caught it")
                print(f"{number}/{len(chosen)} {stage} {broken.name}: {said}", flush=True)


def report(chosen: Sequence[Break], results: dict[str, Result]) -> str:
    """A table of what was changed and what caught it, in Markdown, and the sum."""
    lines = ["| name | file | change | promise | caught by | seconds |", "|---" * 6 + "|"]
    for broken in chosen:
        result = results.get(broken.name, {"by": "not tried", "seconds": 0})
        by = result["by"] or textwrap.shorten(result.get("error", "nothing"), _SHOWN)
        old, new = (textwrap.shorten(text, _SHOWN) for text in (broken.old, broken.new))
        change = f"`{old}` -> `{new}`"
        cells = (broken.name, broken.file, change, broken.promise, by, str(result["seconds"]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    found = [results[broken.name] for broken in chosen if broken.name in results]
    caught, seconds = (sum(result[key] for result in found) for key in ("caught", "seconds"))
    return "\n".join([*lines, "", f"{caught} of {len(chosen)} caught, in {seconds:.0f} s.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Sees whether tests catch the breaks.")
    parser.add_argument("--results", type=Path, default=ROOT / ".breaks.jsonl", metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[b.name for b in BREAKS])
    parser.add_argument("--whole", action="store_true", help="survivors: all tests of the default")
    parser.add_argument("--baseline", action="store_true", help="run the named tests unbroken")
    parser.add_argument("--report", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    chosen = [b for b in BREAKS if not options.only or b.name in options.only]
    if options.baseline:
        with copied() as copy:
            runs = commands([test for broken in chosen for test in broken.tests])
            ends = [pytest(copy, ["-n", "auto", *words], None) for words in runs]
        print(*(output for _, output in ends), sep="\n")
        return int(any(status != 0 for status, _ in ends))
    try_all(chosen, options.results, ("named", "whole")[: 1 + options.whole])
    results = read(options.results)
    if options.report is not None:
        options.report.write_text(report(chosen, results))
    missed = [b.name for b in chosen if b.name not in results or not results[b.name]["caught"]]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught", *missed, sep="\n  not: ")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
