"""Random masks over the patches of images (He et al. 2021, 2111.06377, section 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def patch_noise(
    seed: int, step: Int[Array, ""] | int, indices: Int[Array, "batch"], num_patches: int
) -> Float[Array, "batch patches"]:
    """Uniform numbers that decide which patches are hidden, the largest of an image first.

    Those of an image follow from (seed, step, index) alone: whatever else is in its batch, and
    however the batch is divided between devices.

    Args:
      seed: of the run.
      step: of training.
      indices: of the images in their set.
      num_patches: of each image.

    Returns:
      In float32, from 0 to 1.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    return jax.vmap(lambda key: jax.random.uniform(key, (num_patches,), jnp.float32))(keys)


def masked_order(
    noise: Float[Array, "batch patches"], num_kept: int
) -> tuple[Int[Array, "batch kept"], Int[Array, "batch patches"], Float[Array, "batch patches"]]:
    """Which patches are kept, and which are hidden.

    Args:
      noise: of which the smallest numbers are those of the patches that are kept.
      num_kept: patches of each image that are.

    Returns:
      The kept patches in the order of their noise; for each patch its place in that order, in which
      the kept come first; and 1 where a patch is hidden, else 0.
    """
    order = jnp.argsort(noise, axis=1)
    places = jnp.argsort(order, axis=1)
    return order[:, :num_kept], places, (places >= num_kept).astype(noise.dtype)


def take_tokens(
    tokens: Float[Array, "batch tokens dim"], places: Int[Array, "batch taken"]
) -> Float[Array, "batch taken dim"]:
    """For each image the tokens at its places."""
    return jnp.take_along_axis(tokens, places[:, :, None], axis=1)
