"""A small model of each design, ours and in plain PyTorch, for the tests of weight files."""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import vit_jax
from tests.models.families import FAMILIES, build
from tests.reference.classifier_vit import ClassifierViT
from tests.reference.encoder_vit import EncoderViT
from tests.reference.modular_vit import ModularViT
from tests.reference.t2t_vit import T2TViT, T2TViTDense, T2TViTGhost, T2TViTSE
from tests.reference.vit import VisionTransformer
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.models.spec import Preprocessing
from vit_jax.weights.state_dict import torch_shapes

_SEQUENCE = {"embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_dim": 20, "max_tokens": 30}
_SEEDS: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("vit_encoder", {**_SEQUENCE, "img_size": (8, 12), "patch_size": 4}),
    "modular": (
        "vit_modular",
        {**_SEQUENCE, "img_size": (8, 12), "patch_size": 4, "head_hidden_dim": 11},
    ),
}
ALL = {**FAMILIES, **_SEEDS}
_REFERENCES: dict[str, type[torch.nn.Module]] = {
    "classifier": ClassifierViT,
    "encoder": EncoderViT,
    "modular": ModularViT,
    "t2t se": T2TViTSE,
    "t2t dense": T2TViTDense,
    "t2t ghost": T2TViTGhost,
}


def make(design: str, dtype: Any = jnp.float32, **fields: Any) -> Any:
    """A model of 5 classes without dropout and with weights of no special values."""
    if design in FAMILIES:
        return build(design, dtype, **fields)
    name, own = _SEEDS[design]
    types = {"dtype": dtype, "param_dtype": dtype}
    return redraw(abstract_model(name, **types, **{"num_classes": 5, **own, **fields}))


def redraw(model: Any, seed: int = 0) -> Any:
    """Normal weights of small scale, the same for the same seed."""
    generator = np.random.default_rng(seed)
    shapes = torch_shapes(model)
    vit_jax.load_state_dict(
        model, {key: 0.3 * generator.normal(size=shapes[key]) for key in sorted(shapes)}
    )
    return model


def with_preprocessing(model: Any, preprocessing: Preprocessing | None) -> Any:
    """The model, with another preprocessing in its description."""
    model.spec = dataclasses.replace(model.spec, preprocessing=preprocessing)
    return model


def reference(design: str, **fields: Any) -> torch.nn.Module:
    """The PyTorch module of `make(design, **fields)`, with other weights."""
    name, own = ALL[design]
    own = {**own, **fields}
    kind = _REFERENCES.get(design, T2TViT if design.startswith("t2t") else VisionTransformer)
    known = {**model_fields(name), **own, "num_classes": 5}
    takes = {name for k in kind.__mro__ for name in inspect.signature(k.__init__).parameters}
    fields = {field: value for field, value in known.items() if field in takes}
    fields |= {field: 0.0 for field in fields if field.endswith("drop_rate")}
    return kind(**fields).double().eval()


@nnx.jit
def logits(model: Any, images: Any) -> jax.Array:
    """What the model makes of images; models built alike share a program."""
    return model(images)


def pytorch_logits(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()


def assert_same_weights(got: Any, want: Any) -> None:
    """Every bit of two models' arrays, and their types."""
    got, want = vit_jax.state_dict(got), vit_jax.state_dict(want)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].tobytes() == array.tobytes(), name


def assert_close(got: Any, want: np.ndarray) -> None:
    """Float64 logits of two implementations: 1e-12 of their root mean square."""
    rms = float(np.sqrt(np.mean(np.square(want))))
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-12 * rms)
