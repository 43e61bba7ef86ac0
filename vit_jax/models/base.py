"""What every model of the package is."""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

Logits = jax.Array | tuple[jax.Array, jax.Array]


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
    wanted = f"{name} must be float32, bfloat16, float16 or float64, got {dtype!r}"
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        raise ValueError(wanted) from None
    if not jnp.issubdtype(checked, jnp.floating):
        raise ValueError(wanted)
    if checked == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(f"{name} float64 needs JAX's x64 mode: set JAX_ENABLE_X64=1")
    return checked


class VisionModel(nnx.Module):
    """An image classifier: `forward_head(forward_features(images))`.

    Train mode is NNX's `deterministic` attribute. A model holds no random state: one key drawn from
    `rngs` (stream "dropout") at the start of a call decides every dropout of it.

    Attributes:
      img_size: (height, width) in pixels; in_chans: channels.
      num_classes: width of the logits; 0 means that the head is the identity.
      preprocessing: how the registered name's images are made ready.
      torch_names: (pattern, replacement) pairs for the names of the PyTorch source's state dict
        that do not follow from the attributes: see `vit_jax.interop.state_dict`.
    """

    torch_names: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(
        self, img_size: tuple[int, int], in_chans: int, num_classes: int, dropout_rates, dtype
    ):
        for name, value, least in (("in_chans", in_chans, 1), ("num_classes", num_classes, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.img_size = img_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.dtype = dtype
        self.uses_dropout = any(rate > 0 for rate in dropout_rates)
        self.preprocessing: Preprocessing | None = None
        self.deterministic = False

    def dropout_key(self, rngs: nnx.Rngs | None) -> jax.Array | None:
        """Returns the key of this call's dropouts; None in eval mode and where nothing drops.

        Raises:
          ValueError: the model would drop, and there are no `rngs`.
        """
        if self.deterministic or not self.uses_dropout:
            return None
        if rngs is None:
            raise ValueError(
                "this model has active dropout in train mode: call "
                "model(images, rngs=nnx.Rngs(...)), or model.eval() first"
            )
        return rngs.dropout()

    def check_images(self, images: jax.Array) -> None:
        """Raises ValueError unless images are (B, H, W, C) floats of this model's size."""
        height, width = self.img_size
        wanted = f"images (batch, {height}, {width}, {self.in_chans}), channels last"
        shape = tuple(images.shape)
        if len(shape) != 4:
            raise ValueError(f"wanted {wanted}, got rank {len(shape)}: {shape}")
        if shape[1:] == (self.in_chans, height, width) and shape[1:] != (
            *self.img_size,
            self.in_chans,
        ):
            raise ValueError(
                f"wanted {wanted}, got {shape}: these are channels first (NCHW, PyTorch's layout); "
                "use images.transpose(0, 2, 3, 1)"
            )
        if shape[3] != self.in_chans:
            raise ValueError(f"wanted {wanted}, got {shape[3]} channels: {shape}")
        if shape[1:3] != self.img_size:
            raise ValueError(
                f"wanted {wanted}, got {shape[1]}x{shape[2]} pixels; another size is the model's "
                "field img_size"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"wanted normalised floating-point images, got {images.dtype}")

    @abc.abstractmethod
    def forward_features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images (B, H, W, C) to tokens (B, N, D) after the last norm, class tokens first."""

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
          Logits (B, num_classes).

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing.
        """
        return self.forward_head(self.forward_features(images, rngs=rngs), rngs=rngs)
