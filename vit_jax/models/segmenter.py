"""Dense outputs: a linear head over a backbone's patches, which labels each pixel.

The head is that of DINOv2's linear evaluation (facebookresearch/dinov2, eval/segmentation:
BatchNorm, then a 1x1 convolution over the last layer's patches, resized bilinearly), here without
its BatchNorm: the backbone's last norm stands there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vit_jax.models.base import VisionModel

IGNORED = 255  # a pixel that counts for nothing


class LinearSegmenter(nnx.Module):
    """Patch tokens to the classes of pixels.

    Args:
      backbone: any model of the package; its head is not used.
      num_classes: of a pixel.
      levels: outputs of how many of the last blocks the head sees, side by side.
      rngs: stream "params".

    Raises:
      ValueError: see `VisionModel.forward_intermediates`.
    """

    def __init__(
        self, backbone: VisionModel, num_classes: int, *, levels: int = 1, rngs: nnx.Rngs
    ) -> None:
        self.backbone = backbone
        self.levels = levels
        size, channels = backbone.img_size, backbone.in_chans
        images = jax.ShapeDtypeStruct((1, *size, channels), np.dtype(np.float32))
        maps = nnx.eval_shape(lambda model, x: _maps(model, x, levels), backbone, images)
        self.head = nnx.Linear(
            maps.shape[-1], num_classes, dtype=backbone.dtype, param_dtype=backbone.param_dtype,
            rngs=rngs,
        )  # fmt: skip

    def __call__(
        self, images: Float[Array, "batch height width channels"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch height width classes"]:
        """Logits of each pixel; `rngs` are needed where the backbone drops."""
        logits = self.head(_maps(self.backbone, images, self.levels, rngs))
        shape = (*images.shape[:3], logits.shape[-1])
        # As torch's `interpolate(mode="bilinear", align_corners=False)` where it enlarges.
        return jax.image.resize(logits, shape, "bilinear", antialias=False)


def _maps(
    model: VisionModel, images: jax.Array, levels: int, rngs: nnx.Rngs | None = None
) -> jax.Array:
    maps = model.forward_intermediates(images, levels, norm=True, layout="NHWC", rngs=rngs)
    return jnp.concatenate(maps, axis=-1)


def pixel_cross_entropy(
    logits: Float[Array, "batch height width classes"], labels: Int[Array, "batch height width"]
) -> Float[Array, "batch"]:
    """Cross entropy of each image: the mean over its pixels that are not `IGNORED`."""
    counts = labels != IGNORED
    log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    at_label = jnp.take_along_axis(log_probs, jnp.where(counts, labels, 0)[..., None], axis=-1)
    return _mean(-at_label[..., 0], counts)


def pixel_accuracy(
    logits: Float[Array, "batch height width classes"], labels: Int[Array, "batch height width"]
) -> Float[Array, "batch"]:
    """The share of each image's pixels, `IGNORED` ones left out, that are told right."""
    return _mean(logits.argmax(axis=-1) == labels, labels != IGNORED)


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    total = jnp.where(counts, values, 0).sum(axis=(1, 2))
    return total / jnp.maximum(counts.sum(axis=(1, 2), dtype=values.dtype), 1)


def confusion_of_pixels(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) counts of pixels: row the label, column what was predicted.

    Args:
      predicted: classes, of any shape.
      labels: the same shape; `IGNORED` ones are left out.
      num_classes: of a pixel.
    """
    counts = labels != IGNORED
    pairs = labels[counts].astype(np.int64) * num_classes + predicted[counts]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Of each class what is told right over what is labelled or told so; NaN where it is neither.

    Their mean without the NaNs, `np.nanmean`, is mIoU.

    Args:
      confusion: of `confusion_of_pixels`, over all images of a set.
    """
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    with np.errstate(invalid="ignore"):
        return right / union
