"""Multi-head softmax self-attention."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Bool, Float, Key

from vit_jax.layers.checks import check_number
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import uniform_fan_in, xavier_uniform, zeros
from vit_jax.layers.lazy_softmax import gathered, products
from vit_jax.layers.linear import Linear, wide_matmul
from vit_jax.layers.norm import layer_norm


def check_heads(embed_dim: int, num_heads: int) -> int:
    """Returns the width of a head, or raises ValueError where it is not whole."""
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads} heads"
        )
    return embed_dim // num_heads


def split_heads(
    qkv: Float[Array, "batch tokens triple"], num_heads: int
) -> Float[Array, "3 batch heads tokens head_dim"]:
    """Splits the output of one Linear for q, k and v, stacked in this order, into heads."""
    batch, tokens, triple = qkv.shape
    x = qkv.reshape(batch, tokens, 3, num_heads, triple // (3 * num_heads))
    return x.transpose(2, 0, 3, 1, 4)


def linear_to_heads(
    linear: Linear,
    x: Float[Array, "batch tokens dim"],
    num_heads: int,
    bias: Float[Array, " triple"] | None = None,
) -> tuple[Float[Array, "batch heads tokens head_dim"], ...]:
    """As `split_heads(linear(x))`, of three matmuls with a third of the kernel each.

    No array holds q, k and v together, which would be cut and copied; and each matmul gives heads,
    which XLA for TPUs then writes in the order in which they are used.

    Args:
      bias: on top of the Linear's own.
    """
    dtype = linear.dtype or jnp.promote_types(x.dtype, linear.param_dtype)
    kernel = linear.kernel[...].astype(dtype)
    if linear.bias is not None:
        own = linear.bias[...].astype(dtype)
        bias = own if bias is None else own + bias
    width = kernel.shape[1] // 3

    def heads(start: int) -> jax.Array:
        part = slice(start, start + width)
        by_head = kernel[:, part].reshape(-1, num_heads, width // num_heads)
        y = jnp.tensordot(x.astype(dtype), by_head, axes=1)  # (B, N, heads, head_dim)
        if bias is not None:
            y = y + bias[part].reshape(1, 1, num_heads, -1)
        return y.transpose(0, 2, 1, 3)

    return heads(0), heads(width), heads(2 * width)


def merge_heads(
    x: Float[Array, "batch heads tokens head_dim"],
) -> Float[Array, "batch tokens dim"]:
    batch, heads, tokens, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * head_dim)


def scaled_products(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    scale: float | Float[Array, "#batch heads 1 1"],
    form: str = "auto",
) -> Float[Array, "batch heads queries keys"]:
    """q k^T * scale, in float32 or wider; `form`: a name of `AttentionForm`."""
    if form == "lazy":
        return products(q * scale, k)
    if form == "heads":
        # TPUs multiply float32 as bfloat16 by themselves; rounding it costs a pass over the scores.
        wide = jnp.promote_types(q.dtype, jnp.float32)
        return jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=wide) * scale
    return wide_matmul(q, k.swapaxes(-1, -2)) * scale


def masked(
    scores: Float[Array, "batch heads queries keys"], mask: Bool[Array, "batch keys"] | None
) -> Float[Array, "batch heads queries keys"]:
    """The scores of the keys that the mask has; None: of all."""
    if mask is None:
        return scores
    return jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)


def softmax_weights(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    *,
    scale: float,
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """softmax(q k^T * scale) over the keys that the mask has, in float32 or wider."""
    return jax.nn.softmax(masked(scaled_products(q, k, scale), mask), axis=-1)


def attend(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    v: Float[Array, "batch heads keys value_dim"],
    *,
    scale: float,
    dropout: Dropout,
    key: Key[Array, ""] | None = None,
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch heads queries value_dim"]:
    """softmax(q k^T * scale) v, with the scores and the softmax in float32 or wider.

    Batched matmuls over (B, H, N, D): on a CPU `jax.nn.dot_product_attention`, which takes
    (B, N, H, D), ran at half the speed.
    """
    weights = softmax_weights(q, k, scale=scale, mask=mask).astype(v.dtype)
    return jnp.matmul(dropout(weights, key), v)


def fused_attention(
    q: Float[Array, "batch heads tokens head_dim"],
    k: Float[Array, "batch heads tokens head_dim"],
    v: Float[Array, "batch heads tokens head_dim"],
    *,
    scale: float,
    tokens: int,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch heads _ head_dim"]:
    """softmax(q k^T * scale) v among the first `tokens`, without the matrix of weights in memory.

    cuDNN does not train with an odd number of tokens: one of zeros is put behind them.

    Args:
      q, k, v: heads, in bfloat16 or float16 for cuDNN.
      scale: factor of the scores.
      tokens: that attend and are attended to; behind them there may be others.
      implementation: of `jax.nn.dot_product_attention`.

    Returns:
      (B, heads, `tokens`, head_dim).
    """
    ends = ((0, 0), (0, q.shape[2] % 2), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x.swapaxes(1, 2), ends) for x in (q, k, v))  # (B, N, heads, head_dim)
    lengths = None
    if tokens != q.shape[1]:
        lengths = jnp.full(q.shape[:1], tokens, jnp.int32)
        # Nobody promises what cuDNN leaves behind them in gradients.
        is_there = (jnp.arange(q.shape[1]) < tokens)[:, None, None]
        q, k, v = (jnp.where(is_there, x, 0) for x in (q, k, v))
    attended: Any = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return attended[:, :tokens].swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class AttentionForm:
    """How devices compute attention best, where a module can be computed so.

    Attributes:
      name: "plain"; "heads", each of q, k and v by a matmul of its own straight into heads; or
        "fused", attended by cuDNN: see `fused_attention`. (There one matmul and its slices are
        8 kernels a block fewer, and 0.3 GB of 11 more, than three matmuls.) Or "lazy", for CPUs:
        see `vit_jax.layers.lazy_softmax`.
      widest_head: that cuDNN takes.
    """

    name: str = "plain"
    widest_head: int = 0


class SoftmaxAttention(nnx.Module):
    """What modules of self-attention share: one Linear for q, k and v, and a softmax of scores.

    Attributes:
      num_heads: heads.
      scale: factor of the scores.
      attn_drop: dropout on the attention weights.
      form: how the same numbers are computed: a name of `AttentionForm`; "auto" is the plain one,
        until what runs on known devices chooses: see `vit_jax.layers.forms`.
      by_token: whether `queries_keys_values` treats each token alone.
    """

    num_heads: int
    scale: float
    attn_drop: Dropout
    form = "auto"
    by_token = True

    @property
    def stacked(self) -> Linear:
        """The Linear of q, k and v, stacked in this order."""
        raise NotImplementedError

    def stacked_bias(self) -> Float[Array, " triple"] | None:
        """What q, k and v get beside the Linear's own bias; None: nothing."""
        return None

    def queries_keys_values(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> tuple[Float[Array, "batch heads tokens head_dim"], ...]:
        """Tokens to the heads that attend."""
        del context
        linear, bias = self.stacked, self.stacked_bias()
        if self.form == "heads":
            return linear_to_heads(linear, x, self.num_heads, bias)
        qkv = linear(x)
        if bias is not None:
            qkv = qkv + bias.reshape(1, 1, -1)
        q, k, v = split_heads(qkv, self.num_heads)
        return q, k, v

    def mask(self, *context: jax.Array) -> Bool[Array, "batch keys"] | None:
        """The keys that are attended to; None: all."""
        return context[0] if context else None

    def scores(self, q: jax.Array, k: jax.Array, *context: jax.Array) -> jax.Array:
        """What the softmax is taken of, in float32 or wider: (B, heads, N, N)."""
        return masked(scaled_products(q, k, self.scale, self.form), self.mask(*context))

    def weights(self, q: jax.Array, k: jax.Array, *context: jax.Array) -> jax.Array:
        """What the values of each key are multiplied with, before dropout: (B, heads, N, N)."""
        return jax.nn.softmax(self.scores(q, k, *context), axis=-1)

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> Float[Array, "batch heads tokens tokens"]:
        """The weights that a call with these tokens gives the values, before dropout."""
        q, k, _ = self.queries_keys_values(x, *context)
        return self.weights(q, k, *context)

    def is_fused(self, *context: jax.Array) -> bool:
        """Whether cuDNN computes a call with this context."""
        return self.form == "fused" and self.mask(*context) is None

    def padded(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> Float[Array, "batch _ dim"]:
        """The tokens as `fused_attention` wants their heads: one array to pad and not three."""
        odd = x.shape[1] % 2 if self.by_token and self.is_fused(*context) else 0
        return jnp.pad(x, ((0, 0), (0, odd), (0, 0))) if odd else x

    def attended(
        self,
        q: Float[Array, "batch heads tokens head_dim"],
        k: Float[Array, "batch heads tokens head_dim"],
        v: Float[Array, "batch heads tokens head_dim"],
        *context: jax.Array,
        key: Key[Array, ""] | None = None,
        tokens: int | None = None,
    ) -> Float[Array, "batch heads _ head_dim"]:
        """What the tokens gather; `tokens`: see `fused_attention`, None: all."""
        if self.is_fused(*context):
            return fused_attention(q, k, v, scale=self.scale, tokens=tokens or q.shape[2])
        if self.form == "lazy":
            rate = self.attn_drop.rate
            return gathered(self.scores(q, k, *context), v, rate, key if rate else None)
        weights = self.weights(q, k, *context).astype(v.dtype)
        return jnp.matmul(self.attn_drop(weights, key), v)

    def why_plain(self, form: AttentionForm) -> str:
        """Why this module cannot be computed in a form; empty: it can."""
        linear, own = self.stacked, type(self)
        dtype = jnp.dtype(linear.dtype or linear.param_dtype)
        mixes = own.weights is not SoftmaxAttention.weights
        if form.name == "lazy":
            if mixes:
                return f"{own.__name__} mixes its weights"
            return "" if dtype in (jnp.float32, jnp.float64) else f"it computes in {dtype}"
        if form.name != "fused":
            return ""
        if mixes or own.scores is not SoftmaxAttention.scores:
            return f"{own.__name__} biases or mixes its scores"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"it computes in {dtype}, and cuDNN in bfloat16 and float16"
        if self.attn_drop.rate:
            return "dropout on attention weights"
        head_dim = linear.out_features // (3 * self.num_heads)
        if head_dim % 8 or head_dim > form.widest_head:
            return f"heads of width {head_dim}: cuDNN takes multiples of 8 up to {form.widest_head}"
        return ""


class Attention(SoftmaxAttention):
    """Self-attention with one Linear for q, k and v, as timm's.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      qkv_bias: whether the q/k/v Linear has a bias.
      k_bias: whether the keys have theirs too. Without it the Linear has none, and `q_bias` and
        `v_bias` are parameters, as in timm's BEiT.
      qk_scale: factor of the scores; None means head_dim ** -0.5.
      qk_norm: LayerNorm on the heads of q and of k.
      norm_eps: epsilon of these norms.
      attn_drop_rate: dropout on the attention weights.
      proj_drop_rate: dropout after the output Linear.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        qk_scale: float | None,
        qk_norm: bool,
        norm_eps: float,
        attn_drop_rate: float,
        proj_drop_rate: float,
        k_bias: bool = True,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        head_dim = check_heads(dim, num_heads)
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.num_heads = num_heads
        # Not `or`: a scale of 0 would be replaced in silence.
        self.scale = head_dim**-0.5 if qk_scale is None else check_number("qk_scale", qk_scale)
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias and k_bias, **init, **types, rngs=rngs)

        def bias() -> nnx.Param | None:
            is_wanted = qkv_bias and not k_bias
            return nnx.Param(bias_init(rngs.params(), (dim,), param_dtype)) if is_wanted else None

        self.q_bias, self.v_bias = bias(), bias()
        self.q_norm = layer_norm(head_dim, norm_eps, **types, rngs=rngs) if qk_norm else None
        self.k_norm = layer_norm(head_dim, norm_eps, **types, rngs=rngs) if qk_norm else None
        self.attn_drop = Dropout(attn_drop_rate)
        self.proj = Linear(dim, dim, **init, **types, rngs=rngs)
        self.proj_drop = Dropout(proj_drop_rate)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *context: jax.Array,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        """Tokens to tokens; `context` is what all blocks are given: here the mask of the keys."""
        attn_key, proj_key = split_key(key, 2)
        tokens = x.shape[1]
        q, k, v = self.queries_keys_values(self.padded(x, *context), *context)
        x = self.attended(q, k, v, *context, key=attn_key, tokens=tokens)
        return self.proj_drop(self.project(merge_heads(x)), proj_key)

    @property
    def stacked(self) -> Linear:
        return self.qkv

    def stacked_bias(self) -> Float[Array, " triple"] | None:
        if self.q_bias is None or self.v_bias is None:
            return None
        q_bias, v_bias = (bias[...].astype(self.qkv.dtype) for bias in (self.q_bias, self.v_bias))
        return jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])

    def queries_keys_values(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> tuple[Float[Array, "batch heads tokens head_dim"], ...]:
        q, k, v = super().queries_keys_values(x, *context)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def project(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """The merged heads to the output."""
        return self.proj(x)


class MultiheadAttention(SoftmaxAttention):
    """Self-attention of `torch.nn.MultiheadAttention`, with its names and initialisation.

    `in_proj` holds q, k and v stacked (`in_proj_weight`, `in_proj_bias`: Xavier-uniform and zeros);
    `out_proj` starts as a plain `torch.nn.Linear` with a zero bias.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      attn_drop_rate: dropout on the attention weights.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attn_drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.scale = check_heads(dim, num_heads) ** -0.5
        self.num_heads = num_heads
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.in_proj = Linear(
            dim, 3 * dim, kernel_init=xavier_uniform, bias_init=zeros, **types, rngs=rngs
        )
        self.out_proj = Linear(
            dim, dim, kernel_init=uniform_fan_in, bias_init=zeros, **types, rngs=rngs
        )
        self.attn_drop = Dropout(attn_drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        tokens = x.shape[1]
        q, k, v = self.queries_keys_values(self.padded(x))
        x = self.attended(q, k, v, key=key, tokens=tokens)
        return self.out_proj(merge_heads(x))

    @property
    def stacked(self) -> Linear:
        return self.in_proj
