"""One run computed in every layout: on one device and on 8, with fsdp, by pmap, in parts, stacked.

    VIT_JAX_LAYOUTS=full python -m pytest tests/training/test_layouts.py

takes the registered models at their full size and every combination: 40 minutes of CPU time.
Without it they are shallow and narrow, and each layout and each way to compute comes once by
default; that of data on devices alone in `test_processes.py`.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.training.layouts import Result, run_all
from tests.training.runs import tiny
from vit_jax.config import TrainConfig

FULL = os.environ.get("VIT_JAX_LAYOUTS") == "full"
pytestmark = [pytest.mark.timeout(0 if FULL else 1200), pytest.mark.xdist_group("layouts")]
if FULL:
    pytestmark.append(pytest.mark.optimised)

STEPS = 20
BATCH = 32
# Sums in another order. At full size losses differ by at most 7e-16 and parameters by 7e-14 of
# their rms; of the small T2T by 5e-14 and 1.4e-11. Accumulated gradients that are not divided, to
# which Adam is all but blind, move them by 1e-7 and 6e-4, a wrong dropout mask by 1e-2 and 3.
LOSS, PARAMETER = 1e-11, 1e-9
# The softmax does not see a constant added to the scores of a query, so that the gradient of a
# key's bias is zero but for rounding, which Adam blows up: 7e-13.
KEY_BIAS = 1e-10

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {"mesh__data": 1},
    "data": {"mesh__data": 8},
    "fsdp": {"mesh__data": 4, "mesh__fsdp": 2},
    "pmap": {"mesh__data": 8, "parallel": "pmap"},
}
SMALL = {
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "t2t": ("t2t_vit_7", {"embed_dim": 64, "depth": 1, "num_heads": 2, "token_dim": 8}),
    "deep": ("vit_large_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}
LARGE = {
    "vit": ("vit_tiny_patch16_224", {}),
    "t2t": ("t2t_vit_7", {}),
    "deep": ("vit_large_patch16_224", {"embed_dim": 32, "num_heads": 2}),  # 24 layers
}
DROPOUT: dict[str, Any] = {
    "drop_rate": 0.1,
    "attn_drop_rate": 0.1,
    "drop_path_rate": 0.1,
    "head_drop_rate": 0.1,
}
STACKED: dict[str, Any] = {**DROPOUT, "scan_layers": True, "remat": "blocks"}
SCHEDULE: dict[str, Any] = {
    "optimizer__schedule": "cosine",
    "optimizer__warmup_epochs": 0.2,
    "optimizer__warmup_learning_rate": 1e-6,
}
FLOAT32: dict[str, Any] = {"dtype": "float32", "param_dtype": "float32"}
BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "param_dtype": "float32"}


def run(model: str, layout: str, parts: int = 1, **kwargs: Any) -> TrainConfig:
    """20 updates of 32 digits, 32x32 and augmented.

    The recipes' schedule, rotation and erasing are computed in float32, and rounded otherwise by
    each program that XLA optimises little: they are left to the full size and to models in float32.
    The plain ViT has crops in their place, which are exact: of 8 pixels or fewer to 32, the weights
    are whole 64ths.
    """
    as_recipes = FULL or "dtype" in kwargs
    name, fields = (LARGE if FULL else SMALL)[model]
    fields = {"img_size": 32, "in_chans": 1, "num_classes": 10, **fields, **kwargs}
    types = {"dtype": "float64", "param_dtype": "float64"}
    return tiny(
        **LAYOUTS[layout],
        accumulation_steps=parts,
        model={"name": name, "kwargs": types | fields},
        num_epochs=1,
        data__batch_size=BATCH,
        data__num_train_examples=BATCH * STEPS,
        data__random_resized_crop=model == "vit" and not as_recipes,
        data__crop_scale=(0.8, 1.0),
        data__rotation_degrees=7.0 if as_recipes else 0.0,
        data__random_erasing=0.2 if as_recipes else 0.0,
        data__horizontal_flip=True,
        data__padding_crop=2,
        optimizer__learning_rate=1e-3 if FULL else 3e-3,
        **(SCHEDULE if as_recipes else {}),
        optimizer__weight_decay=0.05,
        optimizer__decay_mask="matrices",
        loss__label_smoothing=0.1,
        ema__decay=0.9,
    )


def layouts_of(model: str, still: dict[str, Any]) -> dict[str, TrainConfig]:
    """A model without dropout, with it, and with it in parts, each in every layout."""
    runs = {}
    for layout in LAYOUTS:
        runs[f"still {layout}"] = run(model, layout, **still)
        runs[f"dropout {layout}"] = run(model, layout, **DROPOUT)
        for parts in (2, 4):
            runs[f"dropout {layout} {parts} parts"] = run(model, layout, parts, **DROPOUT)
    return runs


# By group and name. The first word of a name says whose numbers the run has.
GROUPS = {
    "vit": layouts_of("vit", {})
    | {
        "dropout fsdp scan blocks 2 parts": run("vit", "fsdp", 2, **STACKED),
        "float32 one": run("vit", "one", **STACKED, **FLOAT32),
        "bfloat16 fsdp 2 parts": run("vit", "fsdp", 2, **STACKED, **BFLOAT16),
    },
    # The performer has its own dropout, on by default.
    "t2t": layouts_of("t2t", {"token_drop_rate": 0.0}),
    "deep": {
        "dropout one": run("deep", "one", **DROPOUT),
        "dropout one blocks": run("deep", "one", **DROPOUT, remat="blocks"),
        "dropout one dots": run("deep", "one", **DROPOUT, remat="dots"),
        "dropout one scan": run("deep", "one", **DROPOUT, scan_layers=True),
        "dropout fsdp scan blocks 2 parts": run("deep", "fsdp", 2, **STACKED),
        "dropout pmap scan blocks": run("deep", "pmap", **STACKED),
    },
}
RUNS = [(group, name) for group, runs in GROUPS.items() for name in runs]
FAST = [
    ("vit", "dropout one"),
    ("vit", "dropout fsdp scan blocks 2 parts"),
    ("vit", "dropout pmap 2 parts"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Callable[[str, str], Result]:
    """A function: group and name of a run to its result. One process makes those of a tier."""

    @functools.cache
    def made(fast: bool) -> dict[str, Result]:
        runs = [run for run in RUNS if fast == (run in FAST)]
        configs = {f"{group} {name}": GROUPS[group][name] for group, name in runs}
        return run_all(configs, STEPS, tmp_path_factory.mktemp("layouts") / "results.npz")

    return lambda group, name: made((group, name) in FAST)[f"{group} {name}"]


def alone(name: str) -> str:
    """The run on one device that has the numbers of run `name`."""
    return f"{name.split()[0]} one"


def as_params(runs: list[tuple[str, str]]) -> list:
    return [
        pytest.param(
            *run,
            id="-".join(run).replace(" ", "-"),
            marks=() if FULL or run in FAST else pytest.mark.slow,
        )
        for run in runs
    ]


OTHERS = [run for run in RUNS if run[1] != alone(run[1]) and not run[1].startswith("bfloat16")]


@pytest.mark.parametrize(("group", "name"), as_params(OTHERS))
def test_same_run_as_on_one_device(request, result, group, name):
    found, wanted = result(group, name), result(group, alone(name))
    loss, parameter, key_bias = differences(found, wanted)
    for what, value in (("loss", loss), ("parameter", parameter), ("key_bias", key_bias)):
        request.node.user_properties.append((f"parity:{group}, {name}:{what}", value))
    assert loss <= LOSS
    assert parameter <= PARAMETER
    assert key_bias <= KEY_BIAS
    assert abs(found["sums"][0] / wanted["sums"][0] - 1) <= LOSS
    np.testing.assert_array_equal(found["sums"][1:], wanted["sums"][1:])
    assert found["sums"][-1] == STEPS * BATCH  # each example once
    assert found["dtype/params"].tolist() == ["float64"]


@pytest.mark.parametrize(("group", "name"), as_params(RUNS))
def test_the_layout_is_the_one_that_was_asked_for(result, group, name):
    """A run on one device, or with nothing divided, has the right numbers too."""
    layout, found = name.split()[1], result(group, name)
    assert found["devices"] == (1 if layout == "one" else 8)
    if layout == "fsdp":
        assert 0.5 <= found["share"] < 0.51  # but for arrays of odd sizes
    else:
        assert found["share"] == 1


def differences(found: Result, wanted: Result) -> tuple[float, float, float]:
    """The largest of the losses, relative; of the parameters, over their rms; of key biases."""
    assert found.keys() == wanted.keys()
    parameters, key_biases = [0.0], [0.0]
    for name in (name for name in wanted if name.startswith(("param/", "ema/"))):
        ours, theirs = found[name], wanted[name]
        if name.endswith("attn.qkv.bias"):
            (query, key, value), (query_, key_, value_) = (np.split(x, 3) for x in (ours, theirs))
            key_biases.append(np.abs(key - key_).max())
            ours, theirs = np.stack([query, value]), np.stack([query_, value_])
        parameters.append(np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs**2)))
    loss = np.abs(found["loss"] / wanted["loss"] - 1).max()
    # NumPy's maximum keeps a NaN.
    return float(loss), float(np.max(parameters)), float(np.max(key_biases))


ALONE = [run for run in RUNS if run[1] == alone(run[1])]


@pytest.mark.parametrize(("group", "name"), as_params(ALONE))
def test_the_runs_learn(result, group, name):
    """Equal numbers of runs that stand still would say nothing."""
    losses = result(group, name)["loss"]
    assert losses[-3:].mean() < losses[:3].mean() - 0.1


@pytest.mark.parametrize(("group", "name"), as_params(ALONE))
def test_dropout_is_felt(result, group, name):
    """With another mask the loss is another one."""
    found = result(group, name)
    moved = np.abs(found["redrawn"] / found["loss"][0] - 1)
    assert (moved > 1e3 * LOSS) if not name.startswith("still") else (moved == 0)


@pytest.mark.slow
def test_bfloat16_computes_what_float32_does(result):
    """With fsdp, in parts, scanned and rematerialised; what is kept is float32."""
    found, wanted = result("vit", "bfloat16 fsdp 2 parts"), result("vit", "float32 one")
    # 7e-4; another dropout mask moves a loss by 5e-3. float32 itself: 3e-7.
    difference = np.abs(found["loss"] / wanted["loss"] - 1).max()
    assert 1e-5 < difference < 3e-3
    for name in (name for name in found if name.startswith("param/")):
        assert found[name].dtype == np.float32
        assert np.isfinite(found[name]).all()
    assert found["dtype/params"].tolist() == ["float32"]
    assert found["dtype/opt_state"].tolist() == ["float32", "int32"]
    assert found["dtype/sums"].tolist() == ["float32", "int32"]
