"""One small model of each family, for tests of behaviour that all of them share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vit_jax
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.weights.state_dict import torch_shapes

_VIT = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2}
_T2T = {"img_size": (8, 12), "token_dim": 4, "embed_dim": 8, "num_heads": 2, "mlp_ratio": 2.0}
_DEPTH = {"depth": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", {**_VIT, "init_values": 0.5}),
    "classifier": (
        "vit_classifier",
        {**_VIT, "mlp_dim": 16, "mlp_head_units": (12, 10)},
    ),
    "t2t performer": ("t2t_vit_7", {**_T2T, **_DEPTH}),
    "t2t transformer": ("t2t_vit_t_14", {**_T2T, **_DEPTH}),
    "t2t convolution": ("t2t_vit_7", {**_T2T, **_DEPTH, "tokens_type": "convolution"}),
    # Three units in the gate: with one or two, all may be on the flat side of their ReLU.
    "t2t se": ("t2t_vit_14_se", {**_T2T, **_DEPTH, "embed_dim": 48}),
    "t2t dense": (
        "t2t_vit_dense",
        {**_T2T, "growth_rate": 4, "block_config": (1, 2)},
    ),
    "t2t ghost": ("t2t_vit_16_ghost", {**_T2T, **_DEPTH, "mlp_ratio": 3.0}),
}
# Those that differ from another in the token module or in the blocks alone: for what these have no
# part in, such as heads, the others stand for them.
DESIGNS = [
    family
    for family in FAMILIES
    if family not in ("t2t transformer", "t2t convolution", "t2t se", "t2t ghost")
]
_DROPS = {
    "drop_rate": 0.2,
    "attn_drop_rate": 0.3,
    "drop_path_rate": 0.4,
    "head_drop_rate": 0.3,
    "token_drop_rate": 0.2,
}


def has_field(family: str, field: str) -> bool:
    return field in model_fields(FAMILIES[family][0])


def drops(family: str) -> dict[str, float]:
    """A rate above zero for every dropout that the family has."""
    without = {"token_drop_rate"} if family == "t2t convolution" else set()
    return {k: v for k, v in _DROPS.items() if has_field(family, k) and k not in without}


def shallow(family: str) -> dict[str, Any]:
    """Two blocks: one is the first, whose stochastic depth is none, and one the last."""
    return {"depth": 2} if has_field(family, "depth") else {"block_config": (1, 1)}


def named(family: str, dtype: Any = jnp.float32, **overrides: Any) -> tuple[str, dict[str, Any]]:
    """The registered name and the fields of a model of 5 classes without dropout."""
    name, fields = FAMILIES[family]
    without = {"num_classes": 5, **dict.fromkeys(drops(family), 0.0)}
    return name, {**without, **fields, "dtype": dtype, "param_dtype": dtype, **overrides}


def build(family: str, dtype: Any = jnp.float32, **overrides: Any) -> Any:
    """The model of `named`, with weights."""
    name, fields = named(family, dtype, **overrides)
    return with_weights(name, **fields)


_BUILT: dict[str, tuple[nnx.GraphDef, nnx.State]] = {}


def with_weights(name: str, **fields: Any) -> Any:
    """A registered model, its weights drawn here. It is one of its own, though drawn but once.

    (Initial LayerScale, zero biases and tokens of 1e-6 would hide what becomes of them; and to draw
    as the models do takes a compilation for each shape.)
    """
    kind = repr((name, sorted(fields.items())))
    if kind not in _BUILT:
        model = abstract_model(name, **fields)
        vit_jax.load_state_dict(model, _weights(torch_shapes(model)))
        graph, state = nnx.split(model)
        _BUILT[kind] = graph, jax.tree.map(np.asarray, state)
    graph, state = _BUILT[kind]
    return nnx.merge(graph, jax.device_put(state))


def _weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random arrays; the factors of norms are around one."""
    generator = np.random.default_rng(0)
    return {
        key: 0.2 * generator.normal(size=shapes[key]) + (len(shapes[key]) == 1 and "weight" in key)
        for key in sorted(shapes)
    }


def images(dtype: Any = jnp.float32, batch: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 8, 12, 3)), dtype)


def rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
