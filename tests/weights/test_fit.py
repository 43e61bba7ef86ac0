"""A model that does not fit its weights: all that is wrong, and the names that do fit."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_jax
from tests.models.families import build
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model
from vit_jax.weights import fit
from vit_jax.weights.fit import models_that_fit
from vit_jax.weights.state_dict import MisfitError, torch_shapes

pytestmark = pytest.mark.xdist_group("fit")

# Each design, and all the names whose arrays are the same.
NAMES: dict[str, list[str]] = {
    "vit_tiny_patch16_224": ["deit_tiny_patch16_224", "vit_tiny_patch16_224"],
    "deit_tiny_distilled_patch16_224": ["deit_tiny_distilled_patch16_224"],
    "deit3_small_patch16_384": ["deit3_small_patch16_384"],
    "t2t_vit_7": ["t2t_vit_7"],
    "t2t_vit_14": ["t2t_vit_14", "t2t_vit_14_resnext"],
    "t2t_vit_t_14": ["t2t_vit_t_14"],
    "t2t_vit_14_se": ["t2t_vit_14_se"],
    "t2t_vit_16_ghost": ["t2t_vit_16_ghost"],
    "t2t_vit_dense": ["t2t_vit_dense"],
    "vit_classifier": ["vit_classifier"],
    "vit_encoder": ["vit_encoder"],
    "vit_modular": ["vit_modular"],
}
# Each has candidates of its own that take longer than all others together.
SLOW = {"deit3_small_patch16_384", "t2t_vit_14", "t2t_vit_t_14", "t2t_vit_14_se"}
# The layers whose rows are the classes.
HEADS = ("head.", "head_dist.", "logits_layer.", "linear_layer.", "classification.linear2.")


@functools.cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return torch_shapes(abstract_model(name))


@pytest.fixture(autouse=True)
def models_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of full size."""
    monkeypatch.setattr(fit, "abstract_model", lambda name: name)
    monkeypatch.setattr(
        fit, "torch_shapes", lambda m: shapes_of(m) if isinstance(m, str) else torch_shapes(m)
    )


def arrays_of(name: str, classes: int | None = None) -> dict[str, np.ndarray]:
    """Of the shapes of a registered model, without memory of their own."""
    arrays = {}
    for key, shape in shapes_of(name).items():
        rows = classes if classes and key.startswith(HEADS) else shape[0]
        arrays[key] = np.broadcast_to(np.float32(0), (rows, *shape[1:]))
    return arrays


@pytest.mark.parametrize("name", mostly_slow(NAMES, NAMES.keys() - SLOW))
def test_names_that_fit(name: str) -> None:
    arrays = arrays_of(name, classes=7)
    assert models_that_fit(arrays) == NAMES[name]
    assert models_that_fit(arrays, limit=1) == NAMES[name][:1]


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen", "scalar"])
def test_what_is_of_no_registered_model_fits_none(change: str) -> None:
    arrays = arrays_of("vit_tiny_patch16_224")
    if change == "missing":
        del arrays["norm.bias"]
    elif change == "unexpected":
        arrays["x"] = arrays["norm.bias"]
    else:
        name = "norm.bias" if change == "misshapen" else "patch_embed.proj.weight"
        arrays[name] = np.zeros((3,) if change == "misshapen" else (), np.float32)
    assert models_that_fit(arrays) == []
    assert models_that_fit({}) == []


def test_all_that_is_wrong_is_listed_at_once_and_nothing_changes(tmp_path: Path) -> None:
    model = build("vit")
    before = vit_jax.state_dict(model)
    wrong = {name: array + 1 for name, array in before.items()}
    del wrong["norm.bias"], wrong["cls_token"]
    wrong["blocks.7.norm1.bias"] = np.ones(8, np.float32)
    wrong["head.weight"] = np.ones((4, 8), np.float32)
    wrong["pos_embed"] = wrong["pos_embed"].astype(np.complex64)
    save = {name: array for name, array in wrong.items() if array.dtype != np.complex64}
    np.savez(tmp_path / "w.npz", allow_pickle=False, **wrong)  # type: ignore[arg-type]
    save_file(save, tmp_path / "w.safetensors")
    lines = {
        "missing: norm.bias",
        "missing: cls_token",
        "unexpected: blocks.7.norm1.bias",
        "misshapen: head.weight wanted (5, 8), got (4, 8)",
    }
    kind = "not numeric: pos_embed wanted real numbers, got complex64"
    for file, want in (
        ("w.npz", lines | {kind}),
        ("w.safetensors", lines | {"missing: pos_embed"}),
    ):
        with pytest.raises(ValueError, match="does not fit the model") as error:
            vit_jax.load_pretrained(model, tmp_path / file)
        told = [line.strip().rstrip(";") for line in str(error.value).splitlines()[1:]]
        assert set(told[: len(want)]) == want
        for name, array in vit_jax.state_dict(model).items():
            np.testing.assert_array_equal(array, before[name])


def test_the_error_of_load_pretrained_proposes_names(tmp_path: Path) -> None:
    whole = {name: array.copy() for name, array in arrays_of("vit_classifier").items()}
    save_file(whole, tmp_path / "w.safetensors")
    for family in ("vit", "classifier"):
        model = build(family)
        with pytest.raises(ValueError, match=r"weights fit: \['vit_classifier'\]") as error:
            vit_jax.load_pretrained(model, tmp_path / "w.safetensors")
        assert ("missing: " if family == "vit" else "misshapen: ") in str(error.value)


def _with_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"a.b.{name}": array for name, array in arrays.items() if name != "pos_embed"}


@pytest.mark.parametrize(
    ("fields", "change", "told"),
    [
        ({"depth": 12, "embed_dim": 16}, dict,
         ["missing: blocks.3.", "and 107 more", "misshapen: ",
          "they have 3 layers of width 8, this model 12 of 16"]),
        ({}, _with_prefix, ["missing: ", "unexpected: ",
                            r"without the prefix 'a.b.' 43 of 44 names fit (vit-jax convert "
                            r"--rename '^a\.b\.=')"]),
        ({"num_classes": 7}, dict, ["misshapen: head.weight wanted (7, 8), got (5, 8)",
                                    "head='drop' (--head drop, init_head=fresh) keeps"]),
        ({"num_classes": 0}, dict, ["unexpected: head.weight", "head='drop'"]),
        ({"img_size": 16}, dict,
         ["misshapen: pos_embed", "resize='source' (--resize source, init_resize=source)"]),
        ({"patch_size": 2, "img_size": (4, 6)}, dict,
         ["misshapen: patch_embed.proj.weight", "resize='source'"]),
        ({"in_chans": 1}, dict, ["misshapen: patch_embed.proj.weight", "in_chans=True"]),
    ],
    ids=["sizes", "prefix", "classes", "no head", "image size", "patch size", "channels"],
)  # fmt: skip
def test_the_diagnosis_says_what_would_help(
    tmp_path: Path, fields: dict, change: Callable, told: list[str]
) -> None:
    """In ten lines at most; the error holds every problem."""
    arrays = change(vit_jax.state_dict(build("vit")))
    save_file(arrays, tmp_path / "w.safetensors")
    model = build("vit", **fields)
    with pytest.raises(MisfitError) as error:
        vit_jax.load_pretrained(model, tmp_path / "w.safetensors")
    text = str(error.value)
    assert len(text.splitlines()) <= 10
    for part in told:
        assert part in text
    wanted = torch_shapes(model)
    wrong = {name for name in wanted if name not in arrays or arrays[name].shape != wanted[name]}
    assert len(error.value.problems) == len(wrong | (arrays.keys() - wanted.keys()))
