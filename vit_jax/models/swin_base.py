"""What Swin and Swin V2 share: stages of blocks that attend inside of windows.

microsoft/Swin-Transformer (models/swin_transformer*.py), timm 1.0.31 (models/swin_transformer*.py),
whose names these are, and transformers 5.24 (models/swin, models/swinv2). Stochastic depth drops
both branches of a block, as in the first two; transformers' Swin drops that of the attention alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number, to_pair
from vit_jax.layers.dropout import Dropout, drop_path_rates, split_key
from vit_jax.layers.initializers import trunc_normal
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PATCHIFY, patch_grid
from vit_jax.layers.relative_bias import BIAS_METHODS
from vit_jax.layers.stack import PlainLayers, stack_layers
from vit_jax.layers.swin_block import (
    NormedPatchEmbed,
    PatchMerging,
    SwinBlock,
    SwinStage,
    Windowing,
)
from vit_jax.layers.window_attention import WindowAttention
from vit_jax.models.adaptable import PatchWeights
from vit_jax.models.base import VisionModel
from vit_jax.models.config import DesignConfig, Size, check_size, check_widths, checked

Window = int | tuple[int, int]


def check_windows(name: str, value: Any) -> Window | tuple[Window, ...]:
    """Returns one side for all windows, or for each stage a side or (rows, columns)."""
    if not isinstance(value, Sequence | np.ndarray):
        return check_int(name, value, least=1)
    windows = tuple(check_size(name, window) for window in value)
    return windows[0] if len(set(windows)) == 1 and isinstance(windows[0], int) else windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig(DesignConfig):
    """The fields of `Swin`; the common ones: `DesignConfig`.

    Images of any size are taken. `img_size` decides the windows of each stage, and so the number of
    biases that are learned: a window is no larger than the map of its stage. `embed_dim` is the
    width of the first stage, `norm_eps` that of the blocks' norms and of the last one.

    Attributes:
      patch_size: pixels, one number or (height, width).
      patchify: "conv" or "unfold" (im2col), the same numbers.
      depths, num_heads: blocks of each stage, and heads of its blocks.
      window_size: side of the windows in tokens, or one for each stage: a side, or with
        `window_rule="timm"` also (rows, columns).
      window_rule: what becomes of maps that are no larger than a window or no whole number of them.
        "swin", the release's, and beyond `img_size` transformers': the smaller side decides for
        both, and a map is padded before it is shifted. "timm": each side for itself, and a map is
        padded after it was shifted (huggingface/pytorch-image-models#2438).
      mlp_ratio: hidden width of the MLP over that of the stage.
      qkv_bias: see `layers.attention.Attention`.
      bias_resize: how a table of biases becomes that of other windows, see
        `layers.relative_bias`: "bicubic" as the release, "geometric" as timm.
    """

    patch_size: Size = checked(4, check_size)
    patchify: str = checked("conv", check_choice, free=True, choices=PATCHIFY)
    embed_dim: int = 96
    depths: Sequence[int] = checked((2, 2, 6, 2), check_widths)
    num_heads: Sequence[int] = checked(  # pyright: ignore[reportIncompatibleVariableOverride]
        (3, 6, 12, 24), check_widths
    )
    window_size: Any = checked(7, check_windows, free=True)
    window_rule: str = checked("swin", check_choice, free=True, choices=("swin", "timm"))
    norm_eps: float = 1e-5
    mlp_ratio: float = checked(4.0, check_number, above=0)
    qkv_bias: bool = checked(True, check_bool)
    bias_resize: str = checked("bicubic", check_choice, free=True, choices=BIAS_METHODS)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_stages("num_heads", self.num_heads)
        if isinstance(self.window_size, tuple):
            self.check_stages("window_size", self.window_size)
            if self.window_rule != "timm" and not all(isinstance(w, int) for w in self.window_size):
                raise ValueError(
                    f"window_rule={self.window_rule!r} has square windows: window_size must be one "
                    f"int, or one for each stage, got {self.window_size}"
                )

    def check_stages(self, name: str, values: Sequence[Any]) -> None:
        """Raises ValueError unless there is a value for each stage."""
        if len(values) != len(self.depths):
            raise ValueError(
                f"{name} must have one value for each of the {len(self.depths)} stages of depths, "
                f"got {values!r}"
            )

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of each block: linear from 0 to `drop_path_rate`."""
        return drop_path_rates(self.drop_path_rate, sum(self.depths))

    def wanted_window(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's windows where its map is large enough."""
        windows = self.window_size
        return to_pair("window_size", windows[stage] if isinstance(windows, tuple) else windows)

    def map_size(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's map at `img_size`."""
        size, patch = (to_pair(name, getattr(self, name)) for name in ("img_size", "patch_size"))
        rows, columns = (-(-side // 2**stage) for side in patch_grid(size, patch))
        return rows, columns

    def windowing(self, stage: int, block: int) -> Windowing:
        """How a block cuts its map."""
        wanted, size = self.wanted_window(stage), self.map_size(stage)
        is_timm = self.window_rule == "timm"
        if is_timm:
            shift = (0 if side <= w else w // 2 for side, w in zip(size, wanted, strict=True))
            window = (min(size[0], wanted[0]), min(size[1], wanted[1]))
        else:
            side = min(*size, wanted[0])
            window, shift = (side, side), (side // 2, side // 2)
        rows, columns = shift if block % 2 else (0, 0)
        return Windowing(window, (rows, columns), not is_timm, is_timm)


Config = TypeVar("Config", bound=SwinConfig)


class PooledHead(nnx.Module):
    """The mean of the tokens, dropout and a Linear `fc`, or none of that for 0 classes."""

    def __init__(self, dim: int, num_classes: int, drop_rate: float, **types: Any):
        self.drop = Dropout(drop_rate)
        self.fc = nnx.data(
            nnx.Linear(dim, num_classes, kernel_init=trunc_normal(0.02), **types)
            if num_classes
            else None
        )

    def __call__(
        self, tokens: Float[Array, "batch tokens dim"], *, pre_logits: bool, key: jax.Array | None
    ) -> Float[Array, "batch features"]:
        x = self.drop(tokens.mean(axis=1), key)
        return x if pre_logits or self.fc is None else self.fc(x)


class SwinModel(VisionModel[Config]):
    """What Swin and Swin V2 share: all but their blocks' attention and where the norms stand.

    Of the class:
      norms_after: whether norms follow what they follow, or come before it.
    """

    stem = ("patch_embed",)
    heads = ("head.fc",)
    layers_name = "layers"
    position_name = "patch_embed.norm.weight"
    takes_any_size = True
    prefix_tokens = ()
    resized_by = ("img_size", "patch_size", "window_size")
    named_by = ("img_size", "window_size", "pretrained_window_sizes")
    torch_names = ((r"^stages\.", "layers."),)
    torch_buffers = ("relative_position_index", "relative_coords_table", "attn_mask")
    timm_fields: ClassVar[Mapping[str, Any]] = {"window_rule": "timm", "bias_resize": "geometric"}
    norms_after: ClassVar[bool]

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config)
        types: dict[str, Any] = {**self.types, "rngs": rngs}
        self.patch_embed = NormedPatchEmbed(
            self.img_size,
            to_pair("patch_size", config.patch_size),
            config.in_chans,
            config.embed_dim,
            patchify=config.patchify,
            **types,
        )
        self.pos_drop = Dropout(config.drop_rate)
        self.stages = nnx.List([self._stage(i, types) for i in range(len(config.depths))])
        self.num_features = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.norm = layer_norm(self.num_features, config.norm_eps, **types)
        self.build_head(rngs)

    def attention_of(self, stage: int) -> Callable[..., WindowAttention]:
        """What builds the attention of a stage's blocks."""
        raise NotImplementedError

    def _stage(self, stage: int, types: dict[str, Any]) -> SwinStage:
        config, after = self.config, type(self).norms_after
        dim = config.embed_dim * 2**stage
        downsample = PatchMerging(dim // 2, norm_after=after, **types) if stage else None
        blocks = [
            SwinBlock(
                dim,
                config.num_heads[stage],
                attention=self.attention_of(stage),
                windowing=config.windowing(stage, block),
                norms_after=after,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=config.qkv_bias,
                norm_eps=config.norm_eps,
                drop_rate=config.drop_rate,
                attn_drop_rate=config.attn_drop_rate,
                **types,
            )
            for block in range(config.depths[stage])
        ]
        return SwinStage(downsample, stack_layers(blocks, scan=False))

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the head."""
        rate = self.config.head_drop_rate
        self.head = PooledHead(self.num_features, self.num_classes, rate, **self.types, rngs=rngs)

    @property
    def layers(self) -> PlainLayers:
        """All blocks, one after the other."""
        return PlainLayers([block for _, _, block in self.blocks()])

    def blocks(self) -> Iterator[tuple[int, int, SwinBlock]]:
        """Each with the numbers of its stage and in it."""
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(cast(PlainLayers, stage.blocks)):
                yield i, j, block

    @property
    def num_intermediates(self) -> int:
        """Stages."""
        return len(self.config.depths)

    def layer_of(self, path: tuple[Any, ...]) -> tuple[int, int] | None:
        """The stage and the block; a merging counts to the first block after it, as in timm."""
        if path[0] != "stages":
            return None
        return path[1], path[3] if path[2] == "blocks" else 0

    def wanted_shape(self) -> str:
        """The shape of its images, in words."""
        return f"(batch, height, width, {self.in_chans})"

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless there are pixels."""
        if not height or not width:
            raise ValueError(f"wanted images of at least one pixel, got {height}x{width} pixels")

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last stage's map."""
        return self.stage_grid(self.num_intermediates - 1, height, width)

    def stage_grid(self, stage: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a stage's map of images of so many pixels."""
        self.check_size(height, width)
        sides = zip((height, width), self.patch_embed.patch_size, strict=True)
        rows, columns = (-(-side // (step * 2**stage)) for side, step in sides)
        return rows, columns

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        return self.patch_embed.proj.kernel[...]

    def patch_weights(self) -> PatchWeights:
        """The convolution over the patches."""
        return PatchWeights("patch_embed.proj.weight", is_resampled=True)

    def patch_positions(self) -> None:
        """None: positions are relative."""

    def position_table(self) -> None:
        """None: positions are relative, see `bias_tables`."""

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the map of the first block, (B, rows, columns, D), and the blocks' key."""
        self.check_images(images)
        drop_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        return self.pos_drop(self.patch_embed(images.astype(self.dtype)), drop_key), blocks_key

    def run_blocks(
        self, tokens: jax.Array, key: jax.Array | None, *context: jax.Array
    ) -> jax.Array:
        """What `embed` returned to the last stage's tokens: (B, N, D)."""
        last = self.num_intermediates - 1
        return self.collect([last], tokens, key, *context)[last]

    def collect(
        self, wanted: Sequence[int], tokens: jax.Array, key: jax.Array | None, *context: jax.Array
    ) -> dict[int, jax.Array]:
        """What `embed` returned to the tokens of the wanted stages, each (B, N, D)."""
        del context
        found, first = {}, 0
        keys = split_key(key, len(self.stages))
        for i, stage in enumerate(self.stages):
            if i > max(wanted, default=-1):
                break
            depth = self.config.depths[i]
            rates = self.drop_path_rates[first : first + depth]
            tokens = stage(tokens, drop_path_rates=rates, key=keys[i], remat=self.config.remat)
            first += depth
            if i in wanted:
                found[i] = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        return found

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """The norm after the last stage, of its width alone."""
        if tokens.shape[-1] != self.num_features:
            raise ValueError(
                f"the last norm is {self.num_features} wide and these tokens {tokens.shape[-1]}: "
                "norm=True takes the last stage alone"
            )
        return self.norm(tokens)

    def as_map(self, tokens: jax.Array, index: int, height: int, width: int) -> jax.Array:
        """The tokens (B, N, D) of a stage as (B, rows, columns, D)."""
        grid = self.stage_grid(index, height, width)
        return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Tokens of `forward_features` to logits, from their mean.

        Args:
          tokens: (B, N, D).
          pre_logits: stop before the last Linear.
          rngs: needed in train mode where its input is dropped.

        Returns:
          (B, num_classes); (B, D) with `pre_logits` or without a head.
        """
        return self.head(tokens, pre_logits=pre_logits, key=self.dropout_key(rngs))

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Whether the queries and the values have biases."""
        attention = "layers.0.blocks.0.attn"
        if f"{attention}.qkv.weight" not in shapes:
            return {}
        biases = (f"{attention}.qkv.bias", f"{attention}.q_bias")
        return {"qkv_bias": any(bias in shapes for bias in biases)}
