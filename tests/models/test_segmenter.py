"""The linear segmenter: PyTorch's numbers, ignored pixels, intersection over union by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.tiers import mostly_slow
from vit_jax.models.segmenter import (
    IGNORED,
    LinearSegmenter,
    confusion_of_pixels,
    intersection_over_union,
    pixel_accuracy,
    pixel_cross_entropy,
)

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("levels", mostly_slow([1, 2], [2]))
def test_logits_and_loss_are_torchs(levels: int) -> None:
    """A 1x1 convolution over the maps, resized as `interpolate` does, and `cross_entropy`."""
    backbone = vit_jax.create_model(
        "vit_tiny_patch16_224", rngs=nnx.Rngs(0), dtype="float64", param_dtype="float64", **TINY
    )
    model = LinearSegmenter(backbone, 3, levels=levels, rngs=nnx.Rngs(1))
    model.eval()
    draw = np.random.default_rng(0)
    images = draw.normal(size=(2, 8, 8, 3))
    labels = draw.integers(0, 3, (2, 8, 8))
    labels[0, :3] = IGNORED
    logits = model(jnp.asarray(images))
    maps = backbone.forward_intermediates(jnp.asarray(images), levels, norm=True, layout="NHWC")
    maps = torch.tensor(np.concatenate(maps, axis=-1)).permute(0, 3, 1, 2)
    head = torch.nn.Conv2d(8 * levels, 3, 1, dtype=torch.float64)
    head.load_state_dict(
        {
            "weight": torch.tensor(np.asarray(model.head.kernel[...]).T[:, :, None, None]),
            "bias": torch.tensor(np.asarray(model.head.bias[...])),
        }
    )
    want = torch.nn.functional.interpolate(head(maps), (8, 8), mode="bilinear")
    np.testing.assert_allclose(
        logits, want.detach().permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-13
    )
    loss = torch.nn.functional.cross_entropy(
        want, torch.tensor(labels), ignore_index=IGNORED, reduction="none"
    )
    counts = torch.tensor(labels != IGNORED).sum((1, 2))
    np.testing.assert_allclose(
        pixel_cross_entropy(logits, jnp.asarray(labels)),
        (loss.sum((1, 2)) / counts).detach().numpy(),
        rtol=1e-13,
    )
    right = np.asarray(logits).argmax(-1) == labels
    np.testing.assert_allclose(
        pixel_accuracy(logits, jnp.asarray(labels)), right.sum((1, 2)) / counts.numpy()
    )


def test_an_image_without_a_label_counts_for_nothing() -> None:
    labels = jnp.full((1, 2, 2), IGNORED)
    assert pixel_cross_entropy(jnp.ones((1, 2, 2, 3)), labels) == 0
    assert pixel_accuracy(jnp.ones((1, 2, 2, 3)), labels) == 0


def test_intersection_over_union_by_hand() -> None:
    labels = np.array([[0, 0, 1, 1, IGNORED], [1, 1, 0, 0, IGNORED]])
    predicted = np.array([[0, 1, 1, 1, 2], [1, 0, 0, 0, 0]])
    confusion = confusion_of_pixels(predicted, labels, 4)
    assert confusion[:2, :2].tolist() == [[3, 1], [1, 3]]
    found = intersection_over_union(confusion)
    assert found[:2].tolist() == [0.6, 0.6]
    assert np.isnan(found[2:]).all()
    confusion = confusion_of_pixels(np.array([2, 0]), np.array([0, 0]), 3)
    assert intersection_over_union(confusion).tolist()[::2] == [0.5, 0.0]
