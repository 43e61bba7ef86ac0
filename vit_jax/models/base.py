"""What every model of the package is."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_rate,
    to_pair,
)
from vit_jax.layers.stack import REMAT, PlainLayers, ScannedLayers, collect_outputs

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

_DTYPES = tuple(jnp.dtype(name) for name in ("float32", "bfloat16", "float16", "float64"))

Logits = jax.Array | tuple[jax.Array, jax.Array]
_LAYOUTS = ("NLC", "NHWC")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a model's images are made ready, after scaling to 0..1.

    Attributes:
      mean, std: subtracted and divided by, one a channel.
      crop_fraction: side of the central crop over the side of the resized image.
      interpolation: "bicubic" or "bilinear".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"


def check_dtype(name: str, dtype) -> jnp.dtype:
    """Returns a floating dtype given as such or by name.

    Raises:
      ValueError: it is not a floating type, or float64 while JAX's x64 mode is off.
    """
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        checked = None
    # NumPy takes None for float64.
    if dtype is None or checked is None or checked not in _DTYPES:
        raise ValueError(f"{name} must be float32, bfloat16, float16 or float64, got {dtype!r}")
    if checked == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(f"{name} float64 needs JAX's x64 mode: set JAX_ENABLE_X64=1")
    return checked


def _block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """The blocks that `forward_intermediates` is asked for, counted from 0."""
    if indices is None:
        return list(range(depth))
    if not isinstance(indices, Sequence):
        count = check_int("indices", indices, least=1)
        if count > depth:
            raise ValueError(f"indices={count} is the last blocks: this model has {depth}")
        return list(range(depth - count, depth))
    chosen = [check_int("indices", index, least=-depth) for index in indices]
    if any(index >= depth for index in chosen):
        raise ValueError(f"indices must be blocks from {-depth} to {depth - 1}, got {indices!r}")
    return [index % depth for index in chosen]


class VisionModel(nnx.Module):
    """An image classifier: `forward_head(forward_features(images))`.

    Train mode is NNX's `deterministic` attribute. A model holds no random state: `forward_features`
    and `forward_head` each draw one key from `rngs` (stream "dropout") for all their dropouts.

    Args:
      img_size: pixels, one number or (height, width).
      in_chans: channels.
      num_classes: width of the logits; 0 means that the head is the identity.
      embed_dim: width of a token.
      num_heads: heads of a block.
      norm_eps: of every LayerNorm.
      remat: see `vit_jax.layers.stack.run_layers`.
      scan_layers: whether layers are kept stacked.
      drop_rates: the rates of its dropouts by the names of their fields.
      drop_path_rates: stochastic depth, one rate a block.
      dtype: of the computation.
      param_dtype: of the parameters.

    Attributes:
      preprocessing: how images are made ready: the registered name's, or that of loaded weights;
        None where neither knows (a number of channels that is not the name's).
      prefix_tokens: what the tokens before the patches are, in their order: "class",
        "distillation", "register".
      stem: attributes whose parameters stand before the layers: patches, tokens, positions.
      torch_names: (pattern, replacement) pairs for the names of the PyTorch source's state dict
        that do not follow from the attributes: see `vit_jax.weights.state_dict`.
      torch_stages: modules (or variables of a script) of the source that have no arrays of their
        own, and the module here that does the same.
    """

    prefix_tokens: tuple[str, ...] = ("class",)
    stem: ClassVar[tuple[str, ...]]
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    torch_stages: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        num_heads: int,
        norm_eps: float,
        remat: str,
        scan_layers: bool,
        drop_rates: Mapping[str, float],
        drop_path_rates: Sequence[float],
        dtype: Dtype | str,
        param_dtype: Dtype | str,
    ):
        rates = [check_rate(name, rate) for name, rate in drop_rates.items()]
        self.img_size = to_pair("img_size", img_size)
        self.in_chans = check_int("in_chans", in_chans, least=1)
        self.num_classes = check_int("num_classes", num_classes, least=0)
        self.embed_dim = check_int("embed_dim", embed_dim, least=1)
        self.num_heads = check_int("num_heads", num_heads, least=1)
        self.norm_eps = check_number("norm_eps", norm_eps, above=0)
        self.remat = check_choice("remat", remat, REMAT)
        self.scan_layers = check_bool("scan_layers", scan_layers)
        self.dtype = check_dtype("dtype", dtype)
        self.param_dtype = check_dtype("param_dtype", param_dtype)
        self.drop_path_rates = tuple(drop_path_rates)
        self.uses_dropout = any(rates) or any(drop_path_rates)
        self.preprocessing: Preprocessing | None = None
        self.deterministic = False

    @property
    def types(self) -> dict[str, Any]:
        """The two types, as the constructors of layers take them."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def dropout_key(self, rngs: nnx.Rngs | None) -> jax.Array | None:
        """Returns the key of this call's dropouts; None in eval mode and where nothing drops.

        Raises:
          ValueError: the model would drop, and there are no `rngs` to draw from.
        """
        if self.deterministic or not self.uses_dropout:
            return None
        if not isinstance(rngs, nnx.Rngs) or not {"dropout", "default"} & set(rngs):
            raise ValueError(
                "this model has active dropout in train mode: call "
                'model(images, rngs=nnx.Rngs(...)) with a stream "dropout" or "default", or '
                f"model.eval() first; got rngs={rngs!r}"
            )
        return rngs.dropout()

    def check_images(self, images: jax.Array) -> None:
        """Raises ValueError unless images are (B, H, W, C) floats of this model's size."""
        wanted = f"images {self.wanted_shape()}, channels last"
        if not isinstance(images, jax.Array | np.ndarray):
            raise ValueError(f"wanted {wanted}, a JAX or NumPy array, got {type(images).__name__}")
        shape = tuple(images.shape)
        if len(shape) == 3:
            raise ValueError(f"wanted {wanted}, got rank 3: {shape}; one image is images[None]")
        if len(shape) != 4:
            raise ValueError(f"wanted {wanted}, got rank {len(shape)}: {shape}")
        if shape[1] == self.in_chans and shape[3] != self.in_chans:
            raise ValueError(
                f"wanted {wanted}, got {shape}: these are channels first (NCHW, PyTorch's layout); "
                "use images.transpose(0, 2, 3, 1)"
            )
        if shape[3] != self.in_chans:
            raise ValueError(f"wanted {wanted}, got {shape[3]} channels: {shape}")
        self.check_size(shape[1], shape[2])
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"wanted normalised floating-point images, got {images.dtype}")

    def wanted_shape(self) -> str:
        """The shape of its images, in words."""
        return f"(batch, {self.img_size[0]}, {self.img_size[1]}, {self.in_chans})"

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless this model takes images of so many pixels."""
        if (height, width) != self.img_size:
            raise ValueError(
                f"wanted images {self.wanted_shape()}, got {height}x{width} pixels; another size "
                "is the model's field img_size"
            )

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return len(self.prefix_tokens)

    @abc.abstractmethod
    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch tokens of images of so many pixels, which it takes."""

    @property
    @abc.abstractmethod
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of blocks."""

    @abc.abstractmethod
    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """What follows the last block in `forward_features`: nothing, where a model has no norm."""
        return tokens

    @abc.abstractmethod
    def pixel_filters(self) -> jax.Array:
        """What its first projection weighs the pixels of a window with: (height, width, C, D)."""

    @abc.abstractmethod
    def patch_positions(self) -> jax.Array | None:
        """The learned positions of the patches of its own image size, row by row: (N, D).

        None where they are not learned.
        """

    @abc.abstractmethod
    def forward_features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images (B, H, W, C) to tokens (B, N, D), class tokens first."""

    def forward_intermediates(
        self,
        images: Float[Array, "batch height width channels"],
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        layout: str = "NLC",
        rngs: nnx.Rngs | None = None,
    ) -> list[jax.Array]:
        """Images to the outputs of blocks.

        Args:
          images: (B, H, W, C), floating point, normalised.
          indices: numbers of blocks from 0, from the end where negative; an int n takes the last n;
            None takes all. Blocks after the last one asked for do not run.
          norm: applies what follows the last block in `forward_features`: a last norm, where the
            design has one there. The last block's output is then that of `forward_features`.
          layout: "NLC", all tokens (B, N, D), those before the patches first
            (`num_prefix_tokens`), or "NHWC", the patch tokens as a map (B, rows, columns, D).
          rngs: needed in train mode where the model drops.

        Returns:
          One array for each index, in the order of the indices. (D differs between the blocks of a
          dense T2T-ViT, whose transitions between stages count as blocks, as in its source.)

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing; no such block or
            layout; a norm whose width is not that of the block.
        """
        check_choice("layout", layout, _LAYOUTS)
        chosen = _block_numbers(indices, len(self.drop_path_rates))
        tokens, key = self.embed(images, rngs)
        outputs = collect_outputs(
            self.layers,
            tokens,
            chosen,
            drop_path_rates=self.drop_path_rates,
            key=key,
            remat=self.remat,
        )
        found = [self.last_norm(outputs[i]) if norm else outputs[i] for i in chosen]
        if layout == "NLC":
            return found
        grid = self.token_grid(images.shape[1], images.shape[2])
        return [
            x[:, self.num_prefix_tokens :].reshape(x.shape[0], *grid, x.shape[-1]) for x in found
        ]

    @abc.abstractmethod
    def forward_head(
        self, tokens: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None
    ) -> Logits:
        """Tokens (B, N, D) to logits (B, num_classes), or with `pre_logits` to the head's input."""

    @abc.abstractmethod
    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the head by a new one of `num_classes`; 0 removes it."""

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Classifies images.

        Args:
          images: (B, H, W, C), floating point, normalised.
          rngs: needed in train mode where the model drops; its stream is "dropout".

        Returns:
          Logits (B, num_classes); see `forward_head` for what a model may return beside.

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing.
        """
        return self.forward_head(self.forward_features(images, rngs=rngs), rngs=rngs)
