"""The state dict inside what training scripts save."""

from typing import Any

import numpy as np
import pytest

from vit_jax.weights.wrappers import unwrap_state_dict

A, B = np.zeros(2), np.ones(3)
RAW, EMA = {"w": A, "b": B}, {"w": A + 5, "b": B + 5}


def test_a_bare_state_dict() -> None:
    arrays, report = unwrap_state_dict(RAW)
    assert arrays["w"] is A
    assert list(arrays) == ["w", "b"]
    assert (report.source, report.is_ema, report.others, report.prefix) == ("", False, (), "")
    assert (report.left, report.not_tensors) == ((), ())


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_wrapped_with_an_optimizer_beside(key: str) -> None:
    optimizer = {"state": {0: {"exp_avg": A}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = {"epoch": 3, key: RAW, "optimizer": optimizer, "args": {"lr": 0.1}}
    arrays, report = unwrap_state_dict(checkpoint)
    assert arrays == RAW
    assert report.source == key
    assert report.left == ("epoch", "optimizer", "args")


def test_nested() -> None:
    arrays, report = unwrap_state_dict({"model": {"state_dict": RAW, "step": 1}, "epoch": 1})
    assert arrays == RAW
    assert report.source == "model.state_dict"
    assert report.left == ("model.step", "epoch")


@pytest.mark.parametrize(("ema", "expected"), [(None, RAW), (False, RAW), (True, EMA)])
@pytest.mark.parametrize("order", [1, -1])
def test_raw_and_averaged(ema: bool | None, expected: dict, order: int) -> None:
    """Whatever their order in the file, the raw ones unless asked for."""
    items = [("state_dict", RAW), ("state_dict_ema", EMA)][::order]
    arrays, report = unwrap_state_dict(dict(items), ema=ema)
    assert arrays == expected
    assert report.is_ema == bool(ema)
    assert report.others == (("state_dict",) if ema else ("state_dict_ema",))
    assert report.left == ()


def test_raw_weights_come_first_even_behind_averaged_ones() -> None:
    arrays, report = unwrap_state_dict({"state_dict": {"ema": EMA}, "model": RAW})
    assert arrays == RAW
    assert report.source == "model"
    assert report.others == ("state_dict.ema",)


def test_averaged_alone_serves_unless_raw_is_asked_for() -> None:
    arrays, report = unwrap_state_dict({"state_dict_ema": EMA})
    assert arrays == EMA
    assert report.is_ema
    with pytest.raises(ValueError, match=r"no raw weights \(ema=False\), only: state_dict_ema"):
        unwrap_state_dict({"state_dict_ema": EMA}, ema=False)
    with pytest.raises(ValueError, match=r"no averaged weights \(ema=True\), only: model"):
        unwrap_state_dict({"model": RAW}, ema=True)


def test_a_model_key_that_is_no_state_dict() -> None:
    arrays, report = unwrap_state_dict({"model": {"name": "vit", "depth": 12}, "state_dict": RAW})
    assert arrays == RAW
    assert report.left == ("model",)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_common_prefixes(prefix: str) -> None:
    arrays, report = unwrap_state_dict({"model": {prefix + name: v for name, v in RAW.items()}})
    assert arrays == RAW
    assert report.prefix == prefix


def test_a_prefix_that_not_all_have_stays() -> None:
    mixed = {"module.w": A, "b": B}
    arrays, report = unwrap_state_dict(mixed)
    assert arrays == mixed
    assert report.prefix == ""


def test_entries_that_are_no_arrays_are_listed() -> None:
    arrays, report = unwrap_state_dict({"w": A, "_extra_state": None, "steps": 3, 7: B})
    assert arrays == {"w": A}
    assert report.not_tensors == ("_extra_state", "steps", "7")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ([A], "it is a list, wanted a dict of arrays"),
        ({}, r"its keys are \[\]"),
        ({"student": RAW, "epoch": 1}, r"its keys are \[student, epoch\]; wanted .*state_dict"),
    ],
)
def test_no_state_dict(checkpoint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrap_state_dict(checkpoint)
