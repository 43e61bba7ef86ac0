"""The benchmark runs its contestants in turn and tells what it found."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from benchmarks import on_gpu, run
from benchmarks.account import Limits, account, profiled, table
from benchmarks.against import changes, check_comparable, read_timings
from benchmarks.against import table as table_of_changes
from benchmarks.compile_time import measure_compile, measure_start
from benchmarks.contestants import Workload
from benchmarks.contestants.vit_jax_ import TrainedStep
from benchmarks.gpu_parts import PARTS, Part
from benchmarks.measure import compete
from benchmarks.pictures import draw_ratios, draw_scale
from tests.training.kills import check_none_left

_FIELDS = {"patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
_SMALL = Workload("vit_tiny_patch16_224", 32, 2, _FIELDS)
_NAMES = ("vit_jax", "plain Flax", "torch eager")


@pytest.mark.slow
def test_a_race_its_file_and_its_picture(tmp_path, monkeypatch, capsys):
    """Of three, one of whom cannot compute it: it says so, and the others go on."""
    work = dataclasses.replace(_SMALL, fields=_FIELDS | {"qkv_bias": False})
    monkeypatch.setattr(run, "CPU", (work,))
    monkeypatch.setattr(run, "FORMS", ("forward",))
    arguments = ["run", "--rounds", "2", "--contestants", *_NAMES, "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    run.main()
    (result,) = json.loads((tmp_path / "cpu.json").read_text())["results"]
    assert [timing["contestant"] for timing in result["timings"]] == ["vit_jax", "torch eager"]
    for timing in result["timings"]:
        assert len(timing["seconds"]) == 2
        assert min(timing["seconds"]) > 0
        assert timing["first_seconds"] > 0
        assert timing["peak_bytes"] > 50 * 2**20
    assert result["refused"] == [f"plain Flax: not the model {work.name}"]
    assert f"not measured: {result['refused'][0]}" in capsys.readouterr().out
    assert (tmp_path / "cpu.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("form", ["forward", "step"])
def test_contestants_run_in_turn(form):
    timings, refused = compete(_NAMES, _SMALL, form, rounds=2)
    assert refused == []
    assert [timing.contestant for timing in timings] == list(_NAMES)
    assert all(min(timing.seconds) > 0 for timing in timings)


@pytest.mark.slow
def test_plain_flax_has_no_t2t_vit():
    work = dataclasses.replace(_SMALL, model="t2t_vit_7", fields={"depth": 1, "num_classes": 3})
    timings, refused = compete(["plain Flax", "torch eager"], work, "forward", rounds=1)
    assert [timing.contestant for timing in timings] == ["torch eager"]
    assert refused == ["plain Flax: a T2T-ViT is not in the Flax documentation"]


def test_who_fails_is_not_passed_over(monkeypatch):
    broken = dataclasses.replace(_SMALL, fields=_FIELDS | {"num_heads": 3})
    with pytest.raises(RuntimeError, match=r"vit_jax failed:[\s\S]*divisible by num_heads"):
        compete(["vit_jax"], broken, "forward", rounds=1)


def test_ratios_are_to_pytorch_eager():
    def timing(name, *seconds):
        return run.Timing(name, 9.0, seconds, 2**30)

    timings = [timing("vit_jax", 1.0, 2.0, 9.0), timing("torch eager", 3.0, 4.0, 5.0)]
    result = run.Result(_SMALL, "step", timings, [])
    assert result.ratio("vit_jax") == 2.0
    assert result.ratio("plain Flax") is None
    console = Console(width=200, record=True)
    console.print(run.table([result]))
    assert "2.00" in console.export_text()


def _kept(speed=2.0, peak=1.0, spread=0.05, form="step", names=("vit_jax", "torch eager")):
    """A file's content: our speed relative to PyTorch in three rounds, and GiB held."""
    base = (4.0, 4.4, 3.6)  # what disturbs a round disturbs both
    seconds = {
        "torch eager": base,
        "vit_jax": [b / (speed + s) for b, s in zip(base, (0, spread, -spread), strict=True)],
    }
    timings = [
        {"contestant": name, "first_seconds": 9.0, "seconds": seconds[name]}
        | {"peak_bytes": int(peak * 2**30)}
        for name in names
    ]
    result = {"work": dataclasses.asdict(_SMALL), "form": form, "timings": timings, "refused": []}
    return {"suite": "cpu", "machine": {}, "results": [result]}


def _read(tmp_path, report):
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(report))
    return read_timings(path, "cpu")


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        ({}, []),
        ({"speed": 3.0, "peak": 0.5}, []),
        ({"speed": 1.81}, []),
        ({"speed": 1.7}, ["speed"]),
        ({"speed": 1.7, "spread": 0.6}, []),  # rounds too unlike for a verdict
        ({"peak": 1.05}, []),
        ({"peak": 1.2}, ["peak"]),
        ({"speed": 1.0, "peak": 2.0}, ["speed", "peak"]),
    ],
)
def test_what_has_become_worse_is_named(now, worse, tmp_path):
    found = list(changes(_read(tmp_path, _kept()), _read(tmp_path, _kept(**now))))
    assert [change.figure for change in found] == ["speed", "peak"]
    assert found[0].before == pytest.approx(2.0)
    assert found[0].now == pytest.approx(now.get("speed", 2.0))
    assert [change.figure for change in found if change.is_worse] == worse
    console = Console(width=200, record=True)
    console.print(table_of_changes(found, pathlib.Path("kept.json")))
    assert ("slower" in console.export_text()) == ("speed" in worse)


def test_the_committed_result_can_be_compared_with():
    kept = read_timings(pathlib.Path(run.__file__).parent / "results" / "cpu.json", "cpu")
    check_comparable(kept, run.CPU, ["vit_jax", "torch eager"])


def test_what_one_side_lacks_is_not_compared(tmp_path):
    before = _read(tmp_path, _kept())
    assert not list(changes(before, _read(tmp_path, _kept(form="forward"))))
    assert not list(changes(before, _read(tmp_path, _kept(names=("vit_jax",)))))


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (None, [], "No such file"),
        ("{", [], "which is none"),
        ("[]", [], "which is none"),
        ('{"suite": "cpu", "results": [{"work": {"size": 1}}]}', [], "which is none"),
        ('{"suite": "gpu"}', [], "which is of --suite gpu"),
        (json.dumps(_kept()).replace("[4.0, 4.4, 3.6]", "[4.0]"), [], "had unequal rounds in vit_"),
        ('{"suite": "cpu"}', [], "which has none, got vit_tiny_patch16_224, 32x32, batch 2"),
        (json.dumps(_kept()), ["--contestants", "vit_jax"], "got none of torch eager"),
        (json.dumps(_kept()), ["--suite", "scale"], "compares --suite cpu and gpu, got scale"),
    ],
)
def test_what_cannot_be_compared_is_said_before_measuring(
    content, arguments, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "CPU", (_SMALL,))
    monkeypatch.setattr(run, "race", lambda *_: pytest.fail("measured"))
    path = tmp_path / "kept.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["run", "--against", str(path), *arguments])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert says in capsys.readouterr().err


def test_a_slower_workload_ends_with_status_one(tmp_path, monkeypatch, capsys):
    path = tmp_path / "kept.json"
    monkeypatch.setattr(run, "CPU", (_SMALL,))
    cases: dict[int, list[dict[str, Any]]] = {0: [{}], 1: [{"speed": 1.0}, {"names": ("vit_jax",)}]}
    for now, status in [(now, status) for status, found in cases.items() for now in found]:
        (timings,) = _read(tmp_path, _kept(**now)).values()
        path.write_text(json.dumps(_kept()))
        result = run.Result(_SMALL, "step", list(timings.values()), [])
        monkeypatch.setattr(run, "race", lambda *_, result=result: [result])
        monkeypatch.setattr("sys.argv", ["run", "--against", str(path)])
        assert run.main() == status
        assert ("slower │" in capsys.readouterr().out) == ("speed" in now)


def test_pictures(tmp_path):
    row = {"series": "", "value": 1, "seconds": 0.1, "flops": 10**9}
    series = [
        row | {"series": name, "value": value, "seconds": value / 10, "flops": value * 10**9}
        for name in "abcdef"
        for value in (1, 2, 4)
    ]
    draw_scale({"scale": series}, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 5000
    draw_ratios({"results": []}, tmp_path / "none.png")


def test_the_account_finds_all_of_a_step():
    work = dataclasses.replace(_SMALL, fields=_FIELDS | {"drop_rate": 0.1})
    text, times, alone = profiled(TrainedStep(work), repeats=2)
    assert len(times) == 2
    shares = account(text, times)
    found = sum(share.seconds for share in shares.values())
    assert found == pytest.approx(min(sum(one.values()) for one in times))
    assert 0 < found < 10 * alone
    # 2 x 4 patches, 2 x (4 and a class) tokens, 12 x 16 x 16 weights of the block, 3 classes.
    weights = 2 * 4 * 768 * 16 + 2 * 5 * 12 * 16 * 16 + 2 * 16 * 3
    attention = 2 * 2 * 5 * 5 * 16
    # Each product has two gradients, but for the one with the images themselves.
    expected = 2 * (3 * (weights + attention) - 2 * 4 * 768 * 16)
    assert sum(share.flops for share in shares.values()) == expected
    assert shares["matmuls of batches (attention)"].flops == 2 * 3 * attention
    for kind in ("random numbers (dropout)", "exp and erf (softmax, performer, GELU)"):
        assert shares[kind].seconds > 0
    console = Console(width=200, record=True)
    console.print(table(work, shares, alone, Limits(1e9, 1e9)))
    assert "random numbers" in console.export_text()


@pytest.mark.slow
def test_compile_times():
    rows = measure_compile([_SMALL], 1, Console(quiet=True))
    assert [row["scan_layers"] for row in rows] == [False, True]
    assert all(row["seconds"] > 0.1 for row in rows)


@pytest.mark.slow
def test_time_to_the_first_step():
    found = measure_start(1, Console(quiet=True))
    assert found["cold"] > found["warm"] > 1


def test_parts_of_the_gpu_script_end_in_time_and_leave_json(tmp_path, capsys):
    """One is cut off with what it started, one fails, one lacks a module: the last still runs."""
    stubs = {
        "slow": """echo '{"a": {"ms": 1.5}}'; echo '{"pid": '$$}; sleep 60 & printf '{"b'; wait""",
        "fails": """echo '{"a": 1}'; echo 'no such thing' >&2; exit 3""",
        "lacks": "exit 9",
        "good": """echo '{"a": 1}'; echo '{"b": [2]}'""",
    }
    parts = {name: Part(lambda _: iter(()), 1) for name in stubs}
    parts["slow"] = dataclasses.replace(parts["slow"], share=0.05)
    parts["lacks"] = dataclasses.replace(parts["lacks"], needs=("json", "no_such_module"))
    start = time.monotonic()
    results = on_gpu.run_all(parts, lambda name: ["sh", "-c", stubs[name]], 1.0, tmp_path)
    assert time.monotonic() - start < 20
    stored = [json.loads((tmp_path / f"{name}.json").read_text()) for name in stubs]
    assert stored == results
    assert len(list(tmp_path.iterdir())) == len(stubs)
    slow, fails, lacks, good = results
    assert slow["status"] == "cut off after 1 s"  # 60 s * 0.05 / 2.05
    assert slow["figures"].keys() == {"a", "pid"}
    check_none_left([slow["figures"]["pid"]])
    assert (fails["status"], fails["figures"]) == ("failed with status 3", {"a": 1})
    assert fails["said"] == "no such thing\n"
    assert lacks["status"] == "not installed: no_such_module"
    assert (good["status"], good["figures"]) == ("done", {"a": 1, "b": [2]})
    told = capsys.readouterr().out + on_gpu.summary(results)
    for line in ("slow: cut off after 1 s", 'a: {"ms": 1.5}', "no such thing", "b: [2]"):
        assert line in told


def test_figures_of_a_part_are_there_while_it_runs(tmp_path):
    """What its file holds after the first of two figures."""
    path = tmp_path / "one.json"
    command = f"""echo '{{"a": 1}}'; while ! [ -e {path} ]; do :; done; cat {path} | tr -d '\\n' |
    sed 's/^/{{"before": /; s/$/}}/'; echo"""
    result = on_gpu.run_part("one", ["sh", "-c", command], 30, path)
    before = result["figures"]["before"]
    assert (before["status"], before["figures"]) == ("running", {"a": 1})


@pytest.mark.slow
def test_every_part_of_the_gpu_script_runs_small(tmp_path):
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--small", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=on_gpu.ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = {
        name: json.loads((tmp_path / f"{name}.json").read_text())["figures"] for name in PARTS
    }
    exact = figures["numbers"]["tiny_timm_vit, float32, highest"]
    assert exact["logits, in PyTorch's float32 errors"] < 10
    assert exact["gradients"] < 1e-5
    rounding = figures["numbers"]["bias of q, k, v, 5 tokens, plain"]
    for form in ("fused", "fused, pmap"):
        found = figures["numbers"][f"bias of q, k, v, 5 tokens, {form}"]
        assert all(found[name] < 2 * rounding[name] < 0.1 for name in "qkv")
    assert figures["resume"]["SIGKILL, SIGTERM, error"]["same bits"]
    assert figures["export"]["highest"]["largest difference"] <= 1e-6
    speeds = [*figures["steps"].values(), *figures["t2t"].values()]
    assert all(speed["images/s"] > 0 for speed in speeds)
    assert all(found["steps/s"] > 0 for found in figures["flagship"].values())
