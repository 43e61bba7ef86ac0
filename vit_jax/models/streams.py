"""Random streams for models that are made while JAX traces."""

from typing import Any

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    def __call__(self) -> jax.Array:
        """The next key, as `nnx.RngStream` draws it.

        Flax sets the count through an index and looks at the new one's sharding. Where the count is
        traced it has none, and JAX writes an error text about all operations so far: time that
        grows with the square of the model's depth, three quarters of it for 12 blocks.
        """
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


class Streams(nnx.Rngs):
    """`nnx.Rngs(seed)`, key for key, in a form that is quick under `jax.jit` and `eval_shape`.

    Args:
      seed: an integer, or a key of `jax.random`.
    """

    def __init__(self, seed: int | jax.Array) -> None:
        super().__init__(seed)
        self.default: Any = _Stream(seed, tag="default")
