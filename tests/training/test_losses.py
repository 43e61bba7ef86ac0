"""Losses against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vit_jax.training.losses import (
    binary_cross_entropy,
    classification_loss,
    cross_entropy,
    softmax_cross_entropy,
)
from vit_jax.training.mixing import smooth_one_hot


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 5)) * 3


LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(logits, smoothing, x64):
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(LABELS).long(),
        reduction="none",
        label_smoothing=smoothing,
    )
    losses = softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_losses_are_pytorchs(logits, smoothing, x64):
    weights = [0.5, 2.0, 0.0, 1.0, 3.0]
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(LABELS).long(),
        torch.tensor(weights, dtype=torch.float64),
        reduction="none",
        label_smoothing=smoothing,
    )
    losses = cross_entropy(jnp.asarray(logits), jnp.asarray(LABELS), smoothing, weights)
    np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-14)
    there = np.random.default_rng(1).integers(0, 2, logits.shape)
    for given in (None, weights):
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.tensor(logits),
            torch.tensor(there, dtype=torch.float64),
            reduction="none",
            pos_weight=None if given is None else torch.tensor(given, dtype=torch.float64),
        ).mean(dim=-1)
        losses = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(there), given)
        np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-14)


def test_half_precision_logits_give_a_float32_loss(logits):
    half = jnp.asarray(logits, jnp.bfloat16)
    losses, prediction = classification_loss(half, jnp.asarray(LABELS))
    assert losses.dtype == prediction.dtype == jnp.float32
    exact = softmax_cross_entropy(half.astype(jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_array_equal(losses, exact)


def test_distilled_heads_average(logits):
    heads = (jnp.asarray(logits, jnp.float32), jnp.asarray(logits[::-1].copy(), jnp.float32))
    labels = jnp.asarray(LABELS)
    losses, prediction = classification_loss(heads, labels, 0.1)
    wanted = sum(softmax_cross_entropy(head, labels, 0.1) for head in heads) / 2
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(prediction, (heads[0] + heads[1]) / 2, rtol=1e-6)
    # Both heads learn.
    gradients = jax.grad(lambda both: classification_loss(both, labels)[0].sum())(heads)
    assert all(np.abs(gradient).max() > 0.1 for gradient in gradients)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_pytorchs_and_those_of_labels(logits, smoothing, x64):
    labels = jnp.asarray(LABELS)
    targets = smooth_one_hot(labels, 5, smoothing, jnp.dtype(jnp.float64))
    losses = cross_entropy(jnp.asarray(logits), targets)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(np.asarray(targets)), reduction="none"
    )
    np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-14)
    # One label, spread by the smoothing alone: the loss of labels.
    of_labels = cross_entropy(jnp.asarray(logits), labels, smoothing)
    np.testing.assert_allclose(losses, of_labels, rtol=1e-14)


def test_soft_targets_of_both_heads(logits):
    heads = (jnp.asarray(logits, jnp.float32), jnp.asarray(logits[::-1].copy(), jnp.float32))
    targets = smooth_one_hot(jnp.asarray(LABELS), 5, 0.1, jnp.dtype(jnp.float32))
    targets = 0.3 * targets + 0.7 * targets[::-1]
    losses, prediction = classification_loss(heads, targets, 0.1)
    wanted = sum(cross_entropy(head, targets) for head in heads) / 2
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(prediction, (heads[0] + heads[1]) / 2, rtol=1e-6)
