"""Mixup (1710.09412) and CutMix (1905.04899): examples mixed in pairs, labels as their images.

One draw for the whole batch, as `Mixup` of timm 1.0.31 in its mode "batch", with which DeiT and
T2T-ViT were trained. Row i of the global batch is mixed with row B - 1 - i; in an odd batch the
middle row is its own partner.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How a batch is mixed.

    Attributes:
      mixup_alpha, cutmix_alpha: the share of the first image is drawn from Beta(alpha, alpha); 0
        leaves the method out. One of them is positive.
      probability: that a batch is mixed at all.
      switch_probability: of CutMix, where there are both.
      num_classes: K, the width of the targets.
      label_smoothing: s, see `smooth_one_hot`.
    """

    mixup_alpha: float
    cutmix_alpha: float
    probability: float
    switch_probability: float
    num_classes: int
    label_smoothing: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """What is drawn for a batch.

    Attributes:
      share: lambda, the first label's share, float32.
      weights: (H, W), each pixel's share of the first image, float32: lambda everywhere, or 0
        inside of CutMix's box and 1 outside.
    """

    share: jax.Array
    weights: jax.Array


def make_mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    """The mixing of a run; None where `config.mix` leaves both methods out."""
    mix = config.mix
    if mix.mixup_alpha == mix.cutmix_alpha == 0 or mix.probability == 0:
        return None
    return Mixing(
        mixup_alpha=mix.mixup_alpha,
        cutmix_alpha=mix.cutmix_alpha,
        probability=mix.probability,
        switch_probability=mix.switch_probability,
        num_classes=num_classes,
        label_smoothing=config.loss.label_smoothing,
    )


def symmetric_beta(key: Key[Array, ""], alpha: float) -> Float[Array, ""]:
    """A float32 draw from Beta(alpha, alpha), alpha > 0: by a formula, without rejection.

    Student's t with 2 alpha degrees of freedom by the polar method (Bailey 1994, Mathematics of
    Computation 62), of which t / sqrt(2 alpha + t^2) has the wanted law on [-1, 1] (Devroye 1996,
    "Random variate generation in one line of code").
    """
    radius_key, angle_key = jax.random.split(key)
    tiny = float(jnp.finfo(jnp.float32).tiny)
    log_radius = jnp.log(jax.random.uniform(radius_key, (), jnp.float32, tiny)) / alpha
    cosine = jnp.cos(2 * jnp.pi * jax.random.uniform(angle_key, (), jnp.float32))
    # With q = radius^(1 / alpha): (1 / q - 1) cos^2 / (1 + (1 / q - 1) cos^2), without a quotient
    # that could overflow.
    outer = -jnp.expm1(log_radius) * jnp.square(cosine)
    distance = jnp.sqrt(outer / (jnp.exp(log_radius) + outer))
    return (1 + jnp.sign(cosine) * distance) / 2


def cutmix_box(
    key: Key[Array, ""], share: Float[Array, ""], height: int, width: int
) -> Bool[Array, "height width"]:
    """Where the second image is shown.

    A box of the image's form and of 1 - share of its area, its sides rounded down; its centre is
    uniform over the pixels, and what would lie outside of the image is cut off. (The published code
    of CutMix, and timm before 1.0, make a box of odd size one pixel smaller.)
    """
    row_key, column_key = jax.random.split(key)
    ratio = jnp.sqrt(1 - share)

    def inside(key: jax.Array, size: int) -> jax.Array:
        side = (size * ratio).astype(jnp.int32)
        centre = jax.random.randint(key, (), 0, size, jnp.int32)
        place = jnp.arange(size, dtype=jnp.int32) - centre
        return (place >= -(side // 2)) & (place < (side + 1) // 2)

    return inside(row_key, height)[:, None] & inside(column_key, width)[None]


def _happens(key: jax.Array, probability: float) -> jax.Array:
    return jax.random.uniform(key, (), jnp.float32) < probability


def draw(key: Key[Array, ""], mixing: Mixing, height: int, width: int) -> Draw:
    """Draws how one batch of images is mixed."""
    apply_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    mixup_share = cutmix_share = jnp.ones((), jnp.float32)
    cut = jnp.zeros((height, width), bool)
    if mixing.mixup_alpha:
        mixup_share = symmetric_beta(mixup_key, mixing.mixup_alpha)
    if mixing.cutmix_alpha:
        cut = cutmix_box(box_key, symmetric_beta(cutmix_key, mixing.cutmix_alpha), height, width)
        cutmix_share = 1 - cut.mean(dtype=jnp.float32)  # of what is left of the box
    if mixing.mixup_alpha and mixing.cutmix_alpha:
        is_cutmix = _happens(switch_key, mixing.switch_probability)
    else:
        is_cutmix = jnp.asarray(mixing.cutmix_alpha > 0)
    is_mixed = _happens(apply_key, mixing.probability)
    share = jnp.where(is_cutmix, cutmix_share, mixup_share)
    weights = jnp.where(is_cutmix, (~cut).astype(jnp.float32), mixup_share)
    return Draw(jnp.where(is_mixed, share, 1.0), jnp.where(is_mixed, weights, 1.0))


def smooth_one_hot(
    labels: Int[Array, "batch"], num_classes: int, label_smoothing: float, dtype: jnp.dtype
) -> Float[Array, "batch classes"]:
    """Targets of 1 - s + s / K at the label and s / K elsewhere."""
    at_label = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    return at_label * (1.0 - label_smoothing) + label_smoothing / num_classes


def mirrored(rows: jax.Array, axis: str | None = None) -> jax.Array:
    """The rows of the partners. With `axis` each of its devices holds its part of the batch."""
    rows = rows[::-1]
    if axis is None:
        return rows
    last = jax.lax.axis_size(axis) - 1
    return jax.lax.ppermute(rows, axis, [(device, last - device) for device in range(last + 1)])


def mix_batch(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, "batch"],
    mixing: Mixing,
    partners: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Mixes a batch.

    Args:
      key: of the whole batch; every holder of a part of it has the same.
      images: augmented and normalised.
      labels: the classes.
      mixing: how.
      partners: images and labels as of `mirrored`; None: they are made of those of this batch.

    Returns:
      Images of the same type, and targets whose rows sum to 1: the smoothed labels of both images
      by their shares, in the images' type or float32 if that is wider.
    """
    drawn = draw(key, mixing, *images.shape[1:3])
    weights = drawn.weights[None, :, :, None].astype(images.dtype)
    other_images, other_labels = partners or (mirrored(images), mirrored(labels))
    mixed = images * weights + other_images * (1 - weights)
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    share = drawn.share.astype(dtype)
    smoothing = mixing.label_smoothing
    own, others = (
        smooth_one_hot(of, mixing.num_classes, smoothing, dtype) for of in (labels, other_labels)
    )
    return mixed, own * share + others * (1 - share)
