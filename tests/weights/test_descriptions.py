"""The description of a model through every form of weights, and back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model, design_of, model_fields
from vit_jax.models.spec import ModelSpec, Preprocessing, Target
from vit_jax.weights.dialects import DialectError, dialect_for
from vit_jax.weights.spec_json import read_spec, spec_to_dict

# Numbers, twice the same, letters of other scripts, none at all, and what others would make up.
LABELS = ("10", "2", "2", "naïve café", "日本語", "", 'a "b"\n', "LABEL_7", "7")
PREPROCESSING = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear", "squash")
TARGET = Target("regression", (1.5,) * len(LABELS), (2.0,) * len(LABELS))
FORMS = {
    "w.safetensors": None,
    "w.pth": None,
    "orbax": "orbax",
    "hf": "huggingface",
    "w.npz": "google",
}
_SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depth": 1}
_SMALL |= {"mlp_dim": 8, "mlp_head_units": (6,), "head_hidden_dim": 6, "token_dim": 6}
_SMALL |= {"block_config": (1, 1), "growth_rate": 4, "max_tokens": 80}


def small(name: str) -> Any:
    """The model of a registered name with few parameters, which are zeros."""
    fields = model_fields(name)
    own = {field: value for field, value in _SMALL.items() if field in fields}
    own["img_size"] = 2 * fields.get("patch_size", 16)
    model = abstract_model(name, num_classes=len(LABELS), **own)
    graph, state = nnx.split(model)
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), state)
    return nnx.merge(graph, zeros)


FAST = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "t2t_vit_14_se", "vit_modular")


@pytest.mark.parametrize("name", vit_jax.list_models())
def test_every_name_in_words(name: str) -> None:
    """At its full size; the fields are those of the name and the description is all of it."""
    config = design_of(name).config_class(**model_fields(name))
    spec = ModelSpec(name, config, PREPROCESSING, LABELS, "somewhere", target=TARGET)
    stated = read_spec(json.loads(json.dumps(spec_to_dict(spec))))
    assert stated.fields is not None
    again = ModelSpec(
        str(stated.name),
        design_of(name).config_class(**stated.fields),
        stated.preprocessing,
        stated.class_names,
        "somewhere",
        target=stated.target,
    )
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize("name", mostly_slow(vit_jax.list_models(), FAST))
def test_every_name_through_every_form(name: str, tmp_path: Path) -> None:
    model = small(name)
    for form, dialect in FORMS.items():
        try:
            if dialect not in (None, "orbax"):
                dialect_for(model, dialect)
        except DialectError:
            continue
        for preprocessing, labels, target in ((PREPROCESSING, LABELS, None), (None, None, TARGET)):
            path = tmp_path / f"{labels is None}_{form}"
            model.spec = dataclasses.replace(
                model.spec, preprocessing=preprocessing, class_names=labels, target=target
            )
            vit_jax.save_pretrained(model, path, dialect=dialect)
            spec = vit_jax.from_pretrained(path).spec
            assert dataclasses.replace(spec, source=None) == model.spec, form
            assert spec.source == str(path)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"kind": "ranking"}, "target: wanted multilabel or regression, got 'ranking'"),
        ({"kind": "regression", "mean": [1]}, "target: 1 means and 0 deviations"),
        ({"kind": "regression", "mean": [1], "std": [0]}, "a positive std"),
        ({"kind": "regression", "mean": ["x"], "std": [1]}, "could not convert"),
        ({"sort": "regression"}, "wanted target with kind, mean and std"),
        ("regression", "wanted target with kind"),
    ],
)
def test_a_damaged_target_is_refused(target: Any, message: str) -> None:
    stated = {"spec_version": 1, "name": "vit", "fields": {"depth": 1}, "target": target}
    with pytest.raises(ValueError, match=message):
        read_spec(stated)


def test_transformers_own_words_for_the_target(tmp_path: Path) -> None:
    """Also where nothing of ours stands beside them; some of the outputs keep theirs."""
    model = small("vit_tiny_patch16_224")
    model.spec = dataclasses.replace(model.spec, target=Target("multilabel"))
    vit_jax.save_pretrained(model, tmp_path / "hf", dialect="huggingface")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    assert config["problem_type"] == "multi_label_classification"
    del config["vit_jax"]
    path.write_text(json.dumps(config))
    assert vit_jax.from_pretrained(tmp_path / "hf").spec.target == Target("multilabel")
    assert Target("regression", (1, 2, 3), (4, 5, 6)).at([2, 0]) == Target(
        "regression", (3, 1), (6, 4)
    )
