"""The blocks of Swin and Swin V2, and the merging of patches between their stages."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.checks import hidden_width
from vit_jax.layers.dropout import drop_path, split_key
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.stack import PlainLayers, ScannedLayers, run_layers
from vit_jax.layers.windows import shift_regions, window_merge, window_partition

_INIT = trunc_normal(0.02)
# Of the patches' and the mergings' norms, whatever the blocks have: transformers' rule, and
# everybody's default.
OUTER_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Windowing:
    """How a block cuts its map into windows.

    Attributes:
      window: rows and columns of a window.
      shift: rows and columns that the map is rolled by.
      is_small_unshifted: whether a map is not shifted at all that is no larger than a window along
        one of its sides.
      pads_shifted: whether a map that is no whole number of windows is padded after it is rolled,
        and cut before it is rolled back: timm's way, in which rows that were rolled from the top
        to the bottom lie behind the padding. Else before and after.
    """

    window: tuple[int, int]
    shift: tuple[int, int]
    is_small_unshifted: bool
    pads_shifted: bool

    def shift_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """By how much a map of so many rows and columns is rolled."""
        is_small = any(side <= extent for side, extent in zip(size, self.window, strict=True))
        return (0, 0) if is_small and self.is_small_unshifted else self.shift


def _padded(x: jax.Array, multiple: tuple[int, int]) -> jax.Array:
    """A map with zeros below and on the right, a whole number of `multiple`s."""
    sides = zip(x.shape[1:3], multiple, strict=True)
    down, along = (-side % step for side, step in sides)
    return jnp.pad(x, ((0, 0), (0, down), (0, along), (0, 0))) if down or along else x


class SwinBlock(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with attention inside windows of the map.

    With `norms_after` (Swin V2) x + norm1(attn(x)), then x + norm2(mlp(x)); those norms start at
    zero.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      attention: builds it from `dim`, `num_heads` and the arguments of `Attention`.
      windowing: how the map is cut.
      norms_after: where the norms stand.
      mlp_ratio: hidden width of the MLP over `dim`.
      qkv_bias: see `Attention`.
      norm_eps: epsilon of the norms.
      drop_rate: dropout after the attention's output Linear and inside the MLP.
      attn_drop_rate: dropout on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attention: Callable[..., Any],
        windowing: Windowing,
        norms_after: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_eps: float,
        drop_rate: float,
        attn_drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        init: dict[str, Any] = {"kernel_init": _INIT, "bias_init": zeros}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        starts = {"scale_init": zeros} if norms_after else {}
        self.windowing, self.norms_after = windowing, norms_after
        self.norm1 = layer_norm(dim, norm_eps, **starts, **types)
        self.attn = attention(
            dim,
            num_heads,
            window=windowing.window,
            qkv_bias=qkv_bias,
            norm_eps=norm_eps,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=drop_rate,
            **init,
            **types,
        )
        self.norm2 = layer_norm(dim, norm_eps, **starts, **types)
        hidden_dim = hidden_width(dim, mlp_ratio)
        self.mlp = Mlp(dim, hidden_dim, drop_rate=drop_rate, **init, **types)

    def __call__(
        self,
        x: Float[Array, "batch rows columns dim"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch rows columns dim"]:
        attn_key, path1_key, mlp_key, path2_key = split_key(key, 4)
        _, rows, columns, dim = x.shape
        branch = self._attend(x if self.norms_after else self.norm1(x), attn_key)
        branch = self.norm1(branch) if self.norms_after else branch
        x = x + drop_path(branch, drop_path_rate, path1_key)
        x = x.reshape(x.shape[0], -1, dim)  # (B, N, D)
        branch = self.mlp(x if self.norms_after else self.norm2(x), key=mlp_key)
        branch = self.norm2(branch) if self.norms_after else branch
        x = x + drop_path(branch, drop_path_rate, path2_key)
        return x.reshape(x.shape[0], rows, columns, dim)

    def _attend(
        self, x: Float[Array, "batch rows columns dim"], key: jax.Array | None
    ) -> Float[Array, "batch rows columns dim"]:
        how, size = self.windowing, (x.shape[1], x.shape[2])
        shift = how.shift_of(size)
        is_shifted = any(shift)

        def cut(x: jax.Array) -> jax.Array:
            return x[:, : size[0], : size[1]]

        x = x if how.pads_shifted else _padded(x, how.window)
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2)) if is_shifted else x
        x = _padded(x, how.window)
        whole = x.shape[1], x.shape[2]
        regions = [jnp.asarray(shift_regions(whole, how.window, shift))] if is_shifted else []
        windows = self.attn(window_partition(x, how.window), *regions, key=key)
        x = window_merge(windows, how.window, whole)
        x = cut(x) if how.pads_shifted else x
        x = jnp.roll(x, shift, (1, 2)) if is_shifted else x
        return cut(x)


class PatchMerging(nnx.Module):
    """Joins the tokens of 2x2 places, and halves the width that they have together.

    A map of odd sides has a row or a column of zeros more. With `norm_after` (Swin V2) the norm
    follows the Linear.
    """

    def __init__(self, dim: int, *, norm_after: bool, **types: Any):
        self.norm_after = norm_after
        self.norm = layer_norm((2 if norm_after else 4) * dim, OUTER_EPS, **types)
        self.reduction = Linear(4 * dim, 2 * dim, use_bias=False, kernel_init=_INIT, **types)

    def __call__(
        self, x: Float[Array, "batch rows columns dim"]
    ) -> Float[Array, "batch half_rows half_columns double"]:
        x = _padded(x, (2, 2))
        batch, rows, columns, dim = x.shape
        x = x.reshape(batch, rows // 2, 2, columns // 2, 2, dim)
        # The second column after both rows of the first one.
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows // 2, columns // 2, 4 * dim)
        return self.norm(self.reduction(x)) if self.norm_after else self.reduction(self.norm(x))


class NormedPatchEmbed(PatchEmbed):
    """Patches to normed tokens, as a map; images are padded with zeros to whole patches."""

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        patchify: str,
        **types: Any,
    ):
        super().__init__(img_size, patch_size, in_chans, embed_dim, patchify=patchify, **types)
        self.norm = layer_norm(embed_dim, OUTER_EPS, **types)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns dim"]:
        images = _padded(images, self.patch_size)
        sides = zip(images.shape[1:3], self.patch_size, strict=True)
        rows, columns = (side // step for side, step in sides)
        x = self.norm(super().__call__(images))
        return x.reshape(x.shape[0], rows, columns, -1)


class SwinStage(nnx.Module):
    """The merging of patches, except in the first stage, and the stage's blocks.

    Args:
      downsample: the merging.
      blocks: a stack of `SwinBlock`s.
    """

    def __init__(self, downsample: PatchMerging | None, blocks: PlainLayers | ScannedLayers):
        self.downsample, self.blocks = downsample, blocks

    def __call__(
        self, x: Float[Array, "batch rows columns dim"], **how: Any
    ) -> Float[Array, "batch new_rows new_columns new_dim"]:
        """A map to the next one; `how`: the arguments of `run_layers`."""
        x = x if self.downsample is None else self.downsample(x)
        return run_layers(self.blocks, x, **how)
