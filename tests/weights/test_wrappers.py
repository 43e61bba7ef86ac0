"""The state dict inside what training scripts save."""

import re
from typing import Any

import numpy as np
import pytest

from vit_jax.weights.torch_globals import UnreadObject
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
    assert report.prefix == prefix.replace("_orig_mod.", "")


def test_a_prefix_that_not_all_have_stays() -> None:
    mixed = {"module.w": A, "b": B}
    arrays, report = unwrap_state_dict(mixed)
    assert arrays == mixed
    assert report.prefix == ""


VIT = {"pos_embed": A, "blocks.0.norm1.weight": B}
HF = {"vit.embeddings.position_embeddings": A, "classifier.weight": B}


def under(prefix: str, arrays: dict[str, np.ndarray] = VIT) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("checkpoint", "prefix", "left"),
    [
        ({"n_averaged": np.array(3), **under("module.")}, "module.",
         ("n_averaged",)),  # SWA
        (under("_fsdp_wrapped_module."), "", ()),
        ({"_fsdp_wrapped_module.pos_embed": A,
          "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.norm1.weight": B}, "", ()),
        ({"pos_embed": A, "blocks.0._checkpoint_wrapped_module.norm1.weight": B}, "", ()),
        ({"_orig_mod.module.pos_embed": A, "_orig_mod.module.blocks.0.norm1.weight": B},
         "module.", ()),
        ({"state_dict": {**under("model."), "criterion.weight": A, "acc.total": B}}, "model.",
         ("criterion.*", "acc.*")),  # Lightning
        ({**under("backbone."), "head.weight": A, "head.bias": A}, "backbone.", ("head.*",)),
        (under("net."), "net.", ()),
        (under("encoder.vit."), "encoder.vit.", ()),
        ({**under("module.backbone."), "module.head.mlp.0.weight": A}, "module.backbone.",
         ("module.head.*",)),
        ({**under("model.", HF), "loss": A}, "model.", ("loss",)),
        ({"m.encoder.pos_embedding": A, "m.conv_proj.weight": B}, "m.", ()),
        ({"a.positon_embedding_table": A, "a.b": B, "scale": A}, "a.", ("scale",)),
    ],
)  # fmt: skip
def test_prefixes_of_wrappers_with_more_beside(
    checkpoint: dict, prefix: str, left: tuple[str, ...]
) -> None:
    arrays, report = unwrap_state_dict(checkpoint)
    assert (report.prefix, report.left) == (prefix, left)
    assert len(arrays) == 2
    assert not any("_wrapped_" in name or "_orig" in name for name in arrays)


@pytest.mark.parametrize(
    ("checkpoint", "want", "others"),
    [
        # Values of a whole model's dict that are dicts, under names that wrappers have too.
        ({**VIT, "teacher": under("", HF)}, VIT, ("teacher",)),
        ({**VIT, "student": {"temperature": A}}, VIT, ("student",)),
        # A model within the model is no rival, whatever stands before both.
        ({**VIT, **under("decoder.", HF)}, VIT, ()),
        ({**under("module."), **under("module.decoder.", HF)}, VIT, ()),
        ({**under("model."), **under("model.ema.", HF)}, VIT, ("model.ema.",)),
        ({**under("model."), "avg.n_averaged": B, **under("avg.module.", HF)}, VIT,
         ("avg.module.",)),
    ],
)  # fmt: skip
def test_a_model_with_others_in_it(checkpoint: dict, want: dict, others: tuple[str, ...]) -> None:
    arrays, report = unwrap_state_dict(checkpoint)
    assert arrays == want
    assert report.others == others
    assert not report.is_ema
    if others and others[0] != "student":
        assert "classifier.weight" in unwrap_state_dict(checkpoint, ema=True)[0]


def test_the_proposed_rename_is_one_that_works() -> None:
    extra = {f"blocks.{n}.norm1.weight": B for n in range(1, 3)}
    checkpoint = {
        "state_dict": under("module.momentum.") | under("module.base.", VIT | extra),
        "ema": under("other."),
    }
    with pytest.raises(ValueError, match=r"--rename '\^module\\\.base\\\.='") as error:
        unwrap_state_dict(checkpoint)
    rule = re.findall("--rename '(.*)='", str(error.value))[0]
    arrays, report = unwrap_state_dict(checkpoint, rename=[(rule, "")])
    assert arrays == VIT | extra
    assert report.left == ("module.*",)
    with pytest.raises(ValueError, match="'absent': it changes none of the names"):
        unwrap_state_dict(checkpoint, rename=[(rule, ""), ("absent", "")])
    with pytest.raises(ValueError, match="gives two arrays one name"):
        unwrap_state_dict(checkpoint, rename=[(rule, ""), (r"blocks\.\d", "")])


def test_raw_weights_that_cannot_be_read_are_not_passed_over() -> None:
    unread = UnreadObject("an object of mine.Net")
    with pytest.raises(ValueError, match=r"'model' is an object of mine\.Net, and only its av"):
        unwrap_state_dict({"model": unread, "model_ema": EMA})
    assert unwrap_state_dict({"model": unread, "model_ema": EMA}, ema=True)[0] == EMA
    with pytest.raises(ValueError, match=r"no state dict: 'model' is an object .* state_dict\(\)"):
        unwrap_state_dict({"model": unread, "epoch": 1})


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("ema", "of"), [(None, 0), (False, 0), (True, 5)])
def test_student_and_teacher(nested: bool, ema: bool | None, of: int) -> None:
    """Of self-distillation: the teacher is the student's average."""
    teacher = {name: array + 5 for name, array in VIT.items()}
    if nested:
        checkpoint = {"student": under("module.backbone."), "teacher": under("backbone.", teacher)}
    else:
        checkpoint = {"model": under("student.backbone.") | under("teacher.backbone.", teacher)}
    arrays, report = unwrap_state_dict(checkpoint, ema=ema)
    np.testing.assert_array_equal(arrays["pos_embed"], A + of)
    assert report.is_ema == bool(ema)
    assert len(report.others) == 1
    assert report.left == ()


def test_averages_of_swa_are_averaged_weights() -> None:
    swa = {"n_averaged": A, **under("module.")}
    assert unwrap_state_dict({"state_dict": VIT, "model_ema": swa}, ema=True)[1].is_ema
    assert unwrap_state_dict(swa)[1].is_ema
    with pytest.raises(ValueError, match="no raw weights"):
        unwrap_state_dict(swa, ema=False)


def test_entries_that_are_no_arrays_are_listed() -> None:
    arrays, report = unwrap_state_dict({"w": A, "_extra_state": None, "steps": 3, 7: B})
    assert arrays == {"w": A}
    assert report.not_tensors == ("_extra_state", "steps", "7")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ([A], "it is a list, wanted a dict of arrays"),
        ({}, r"its keys are \[\]"),
        ({"pupil": RAW, "epoch": 1}, r"its keys are \[pupil, epoch\]; wanted .*state_dict"),
        (
            {"a.pos_embed": A, "b.pos_embed": B},
            r"several models, under [ab]\., [ab]\.: keep one .*--rename '\^[ab]",
        ),
    ],
)
def test_no_state_dict(checkpoint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrap_state_dict(checkpoint)
