"""One small model of each family, for tests of behaviour that all of them share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vit_jax

_VIT = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", {**_VIT, "init_values": 0.5}),
    "classifier": (
        "vit_classifier",
        {**_VIT, "mlp_dim": 16, "mlp_head_units": (12, 10)},
    ),
}
DROPS = {"drop_rate": 0.2, "attn_drop_rate": 0.3, "drop_path_rate": 0.4, "head_drop_rate": 0.3}
_NO_DROPS = dict.fromkeys(DROPS, 0.0)


def build(family: str, dtype: Any = jnp.float32, **overrides: Any) -> Any:
    """A model of 5 classes without dropout, its weights moved off their initial values.

    (LayerScale, zero biases and tokens of 1e-6 would hide what becomes of them.)
    """
    name, fields = FAMILIES[family]
    fields = {"num_classes": 5, **_NO_DROPS, **fields, "param_dtype": dtype, **overrides}
    model = vit_jax.create_model(name, rngs=nnx.Rngs(0), dtype=dtype, **fields)
    generator = np.random.default_rng(0)
    weights = vit_jax.state_dict(model)
    vit_jax.load_state_dict(
        model,
        {
            key: weights[key].astype(np.float32) + 0.2 * generator.normal(size=weights[key].shape)
            for key in sorted(weights)
        },
    )
    return model


def images(dtype: Any = jnp.float32, batch: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 8, 12, 3)), dtype)


def rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
