"""Rotary positions of a grid of patches, as DINOv3 has them (Su et al. 2021, 2104.09864).

transformers 5.24 (models/dinov3_vit) and facebookresearch/dinov3 (layers/rope_position_encoding.py)
fix parts of the computation in float32, whatever the model's type: the coordinates, and the
frequencies. They are rounded so here too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention

ROUNDINGS = ("float32", "bfloat16", "timm")


def frequencies(head_dim: int, theta: float, rounding: str) -> np.ndarray:
    """What a coordinate is multiplied by, besides 2 pi: head_dim / 4 numbers.

    Args:
      head_dim: width of a head, a multiple of 4.
      theta: base of the periods, which go from 1 up to it.
      rounding: "float32", of the frequencies, as transformers; "bfloat16", of the periods, as the
        release's weights hold them; "timm", of the periods to float32.

    Raises:
      ValueError: another width.
    """
    if head_dim % 4:
        raise ValueError(
            f"rotary positions of rows and columns need embed_dim / num_heads divisible by 4, got "
            f"{head_dim}"
        )
    exponents = (np.arange(head_dim // 4) * (4 / head_dim)).astype(np.float32)
    periods = np.power(float(theta), exponents.astype(np.float64))
    if rounding == "bfloat16":
        return 1 / periods.astype(jnp.bfloat16).astype(np.float64)
    if rounding == "timm":
        return 1 / periods.astype(np.float32).astype(np.float64)
    return (np.float32(1) / periods.astype(np.float32)).astype(np.float64)


def patch_coordinates(rows: int, columns: int) -> np.ndarray:
    """(row, column) of the middle of each patch, from -1 to 1 over the image: (N, 2), float32."""
    sides = [
        2 * ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)) - np.float32(1)
        for n in (rows, columns)
    ]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)


def augmented(
    coordinates: Float[Array, "patches 2"],
    key: jax.Array,
    *,
    shift: float | None,
    jitter: float | None,
    rescale: float | None,
) -> Float[Array, "patches 2"]:
    """Coordinates moved, stretched along each axis and stretched along both, at random.

    Args:
      shift: up to which each axis is moved.
      jitter: up to which factor, or down to its inverse, each axis is stretched; the logarithm is
        uniform.
      rescale: the same, of both axes at once.
    """
    shift_key, jitter_key, rescale_key = jax.random.split(key, 3)

    def drawn(key: jax.Array, axes: int, reach: float) -> jax.Array:
        return jax.random.uniform(key, (1, axes), coordinates.dtype, -reach, reach)

    if shift is not None:
        coordinates = coordinates + drawn(shift_key, 2, shift)
    if jitter is not None:
        coordinates = coordinates * jnp.exp(drawn(jitter_key, 2, math.log(jitter)))
    if rescale is not None:
        coordinates = coordinates * jnp.exp(drawn(rescale_key, 1, math.log(rescale)))
    return coordinates


def rotations(
    coordinates: Float[Array, "patches 2"],
    frequencies: np.ndarray,
    dtype: jnp.dtype,
    rounding: str = "float32",
) -> Float[Array, "2 patches half"]:
    """Cosine and sine of the angles of each patch: first those of its row, then of its column.

    Angles are of float32, or of float64 for a float64 model; but 2 pi times a coordinate is of
    float32 in all sources but timm.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    kind = wide if rounding == "timm" else jnp.dtype(jnp.float32)
    turns = 2 * math.pi * jnp.asarray(coordinates, jnp.float32).astype(kind)
    angles = turns.astype(wide)[:, :, None] * jnp.asarray(frequencies, wide)[None, None]
    angles = angles.reshape(len(angles), -1)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)]).astype(dtype)


def rotated(
    x: Float[Array, "batch heads tokens head_dim"], table: Float[Array, "2 patches half"]
) -> Float[Array, "batch heads tokens head_dim"]:
    """Turns channel i with channel i + head_dim / 2 of the patches, which are the last tokens."""
    prefix = x.shape[2] - table.shape[1]
    kept, patches = x[:, :, :prefix], x[:, :, prefix:]
    first, second = jnp.split(patches, 2, axis=-1)
    cos, sin = table[:, None, None].astype(x.dtype)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([kept, turned], axis=2)


class RotaryAttention(Attention):
    """Attention whose queries and keys of the patches are rotated by their place.

    Its context is the table of `rotations`.
    """

    by_token = False

    def mask(self, *context: jax.Array) -> None:
        """All tokens may be attended to."""
        del context

    def queries_keys_values(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> tuple[Float[Array, "batch heads tokens head_dim"], ...]:
        """Tokens to the heads that attend."""
        (table,) = context
        q, k, v = super().queries_keys_values(x)
        return rotated(q, table), rotated(k, table), v
