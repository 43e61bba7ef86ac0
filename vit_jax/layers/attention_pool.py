"""Pooling by attention: one learned query over all tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Bool, Float

from vit_jax.layers.attention import attend, check_heads, merge_heads, softmax_weights
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.linear import Linear
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm


class AttentionPool(nnx.Module):
    """The MAP head of big_vision's ViT (Zhai et al. 2022, 2106.04560), with timm's names.

    A learned token attends to all others; the answer is what it saw plus an MLP of that, normed.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      hidden_dim: hidden width of the MLP.
      norm_eps: epsilon of the LayerNorm.
      activation: of the MLP.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        norm_eps: float,
        activation: Callable[[jax.Array], jax.Array],
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.scale, self.num_heads = check_heads(dim, num_heads) ** -0.5, num_heads
        self.dtype = dtype
        self.latent = nnx.Param(kernel_init(rngs.params(), (1, 1, dim), param_dtype))
        self.q = Linear(dim, dim, **init, **types, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, **init, **types, rngs=rngs)
        self.proj = Linear(dim, dim, **init, **types, rngs=rngs)
        self.norm = layer_norm(dim, norm_eps, **types, rngs=rngs)
        self.mlp = Mlp(
            dim, hidden_dim, drop_rate=0.0, activation=activation, **init, **types, rngs=rngs
        )

    def __call__(
        self,
        tokens: Float[Array, "batch tokens dim"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Pools the tokens that the mask has; None: all."""
        q, k, v = self._heads(tokens)
        seen = attend(q, k, v, scale=self.scale, dropout=Dropout(0.0), mask=mask)
        x = self.proj(merge_heads(seen))
        return (x + self.mlp(self.norm(x)))[:, 0]

    def pooling_weights(
        self,
        tokens: Float[Array, "batch tokens dim"],
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch heads tokens"]:
        """What each head of the query gives every token."""
        q, k, _ = self._heads(tokens)
        return softmax_weights(q, k, scale=self.scale, mask=mask)[:, :, 0]

    def _heads(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query (B, heads, 1, head_dim), keys and values (B, heads, N, head_dim)."""

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)

        q = split(self.q(self.latent[...].astype(self.dtype)))
        k, v = (split(part) for part in jnp.split(self.kv(tokens), 2, axis=-1))
        return jnp.broadcast_to(q, (tokens.shape[0], *q.shape[1:])), k, v
