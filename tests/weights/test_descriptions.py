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
NUMBERS = Target("regression", tuple(range(9)), (0.1,) * 9)
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
    spec = ModelSpec(name, config, PREPROCESSING, LABELS, "somewhere", target=NUMBERS)
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
        for facts in ((PREPROCESSING, LABELS, NUMBERS), (None, None, None)):
            path = tmp_path / f"{facts[0] is None}_{form}"
            named = dict(zip(("preprocessing", "class_names", "target"), facts, strict=True))
            model.spec = dataclasses.replace(model.spec, **named)
            vit_jax.save_pretrained(model, path, dialect=dialect)
            spec = vit_jax.from_pretrained(path).spec
            assert dataclasses.replace(spec, source=None) == model.spec, form
            assert spec.source == str(path)
