"""What every registered name can do, tried out at a tiny size, as a table.

    python -m benchmarks.abilities --results abilities.jsonl [--out docs/abilities.md] [NAME ...]

Each name is brought to 2 blocks of a few channels; names that are then the same model share a line.
A line is tried whole: 2 steps of training on the digits, then each command on the run. Finished
lines are kept in the file of `--results` and not tried again: begin a new file when something has
changed. `plan` needs libtpu (`pip install 'vit-jax[tpu]'`; no TPU). On two CPU cores all lines take
about half an hour.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import io
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.pages import keep, kept, put_between

BEGIN, END = "<!-- abilities: begin -->", "<!-- abilities: end -->"
_DEVICES = "--xla_force_host_platform_device_count=2"
# What makes a model small, where its design has such a field; all else is the name's.
_TINY: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 48,
    "depth": 2,
    "depths": (2, 2),
    "pretrained_window_sizes": (0, 0),
    "num_heads": 2,
    "mlp_ratio": 3.0,
    "mlp_dim": 32,
    "token_dim": 8,
    "growth_rate": 8,
    "block_config": (1, 1),
    "projection_dim": 16,
    "num_patches": 9,
    "max_tokens": 5,
    "representation_size": 16,
    "mlp_head_units": (16, 12),
    "head_hidden_dim": 16,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Names that are one model at the tiny size.

    Attributes:
      names: registered.
      fields: for `create_model` of any of them.
    """

    names: tuple[str, ...]
    fields: dict[str, Any]

    def train(self, folder: pathlib.Path, **overrides: Any) -> None:
        """Two steps on the digits."""
        from vit_jax.training import train

        train(self.config(**overrides), folder)

    def config(self, *, mesh: dict[str, int] | None = None, **fields: Any) -> Any:
        from vit_jax.config import from_dict

        return from_dict(
            {
                "num_epochs": 1,
                "model": {"name": self.names[0], "kwargs": {**self.fields, **fields}},
                "data": {
                    "source": "digits",
                    "batch_size": 32,
                    "num_train_examples": 64,
                    "num_workers": 0,
                },
                "optimizer": {"learning_rate": 1e-3},
                "checkpoint": {"every_steps": 2},
                "log": {"every_steps": 1, "tensorboard": False, "progress": "none"},
                "mesh": mesh or {"data": 1, "fsdp": 1},
            }
        )


def cases(patterns: list[str]) -> list[Case]:
    """The names that match any of the globs, gathered by what they are at the tiny size."""
    from vit_jax.models.registry import design_of, list_models, model_fields

    found: dict[str, list[str]] = {}
    fields_of: dict[str, dict[str, Any]] = {}
    for name in list_models():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        known = model_fields(name)
        fields = {
            field: value
            for field, value in _TINY.items()
            if field in known and (known[field] is not None or field == "in_chans")
        }
        if "depths" in fields:  # heads of each stage, and patches enough for two windows
            fields |= {"num_heads": (2, 2), "patch_size": 2, "window_size": 2}
        rest = {k: v for k, v in known.items() if k not in fields}
        key = json.dumps([design_of(name).design, rest], sort_keys=True, default=str)
        found.setdefault(key, []).append(name)
        fields_of[key] = fields
    return [Case(tuple(names), fields_of[key]) for key, names in found.items()]


def _command(*arguments: Any) -> None:
    """A command of the package, quietly; its one line of error becomes an exception's."""
    from vit_jax import cli

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = cli.main([str(argument) for argument in arguments])
    if status:
        lines = error.getvalue().strip().splitlines() or [f"status {status}"]
        raise ValueError(lines[-1].removeprefix("error: "))


def _plan(case: Case, folder: pathlib.Path) -> None:
    del folder
    from vit_jax.plan.libtpu import devices_of
    from vit_jax.plan.plan import make_plan
    from vit_jax.plan.topology import parse_topology

    topology = parse_topology("v5e:2x2")
    make_plan(case.config(mesh={"data": -1, "fsdp": 1}), topology, devices_of(topology))


def _photograph(folder: pathlib.Path) -> pathlib.Path:
    import numpy as np
    from PIL import Image

    path = folder / "photograph.png"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(15, 20) % 251).save(path)
    return path


ABILITIES: dict[str, Callable[[Case, pathlib.Path], None]] = {
    "train": lambda case, at: case.train(at / "run"),
    "predict": lambda case, at: _command("predict", at / "run", _photograph(at)),
    "probe": lambda case, at: _command("probe", at / "run", "--k=3"),
    "plot attention": lambda case, at: _command(
        "plot", "attention", at / "run", _photograph(at), "--out", at / "attention.png"
    ),
    "summary": lambda case, at: _command("summary", at / "run"),
    "export": lambda case, at: _command("export", at / "run", at / "exported", "--platforms=cpu"),
    "plan": _plan,
    "bfloat16": lambda case, at: case.train(at / "bf16", dtype="bfloat16"),
    "remat": lambda case, at: case.train(at / "remat", remat="blocks"),
    "scan_layers": lambda case, at: case.train(at / "scan", scan_layers=True),
    "fsdp": lambda case, at: case.train(at / "fsdp", mesh={"data": 1, "fsdp": 2}),
}


def attempt(case: Case) -> dict[str, str]:
    """Each ability: "yes", or why not."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ability in ABILITIES.items():
            try:
                ability(case, pathlib.Path(folder))
                found[name] = "yes"
            except Exception as error:
                found[name] = f"no: {type(error).__name__}: {error}".splitlines()[0][:200]
    return found


def table(lines: dict[str, dict[str, Any]]) -> str:
    """The table of all lines, and under it why some are not able."""
    reasons: dict[str, int] = {}
    rows = [f"| names | {' | '.join(ABILITIES)} |", "|---" * (len(ABILITIES) + 1) + "|"]
    for line in lines.values():
        cells = [f"`{name}`" for name in line["names"]]
        row = [", ".join(cells)]
        for ability in ABILITIES:
            told = line["found"].get(ability, "not tried")
            if told.startswith("no: "):
                number = reasons.setdefault(told.removeprefix("no: "), len(reasons) + 1)
                told = f"no ({number})"
            row.append(told)
        rows.append(f"| {' | '.join(row)} |")
    why = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*rows, "", *why])


def main() -> int:
    parser = argparse.ArgumentParser(description="what every registered name can do")
    parser.add_argument("names", nargs="*", default=["*"], metavar="NAME", help="globs")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="a line for each model")
    parser.add_argument("--out", type=pathlib.Path, help="the page that the table goes into")
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
    from vit_jax.plan.libtpu import prepare_environment

    prepare_environment()
    lines: dict[str, dict[str, Any]] = {}
    for line in kept(options.results):
        lines[" ".join(line["names"])] = line
    for case in cases(options.names):
        key = " ".join(case.names)
        if key in lines:
            continue
        start = time.perf_counter()
        lines[key] = {"names": case.names, "found": attempt(case)}
        keep(options.results, lines[key])
        print(f"{key}: {time.perf_counter() - start:.0f} s {lines[key]['found']}", flush=True)
    if options.out:
        put_between(options.out, BEGIN, END, f"{table(lines)}\n")
    else:
        print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
