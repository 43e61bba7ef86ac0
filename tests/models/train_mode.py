"""Dropouts of a call; and train mode against PyTorch's, by the distributions of the logits."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from flax import nnx

import vit_jax
from tests.models import calls
from vit_jax.layers.dropout import Dropout
from vit_jax.models.registry import abstract_model

DRAWS = 4000  # copies of one image in a batch, each with masks of its own
STANDARD_ERRORS = 5.0
SMALLEST_P_VALUE = 1e-5


def dropped_units(model: Any, images: jax.Array) -> list[np.ndarray]:
    """Where the outputs of the dropouts of one call are zero, in the order of the calls."""
    call = Dropout.__call__

    @jax.jit
    def run(images):
        masks = []

        def recording(self, x, key=None):
            out = call(self, x, key)
            if key is not None and self.rate:
                masks.append(out == 0)
            return out

        with mock.patch.object(Dropout, "__call__", recording):
            model(images, rngs=nnx.Rngs(dropout=calls.dropout_key(0)))
        return masks

    return [np.asarray(mask) for mask in run(images)]


def assert_all_differ(masks: list[np.ndarray]) -> None:
    for index, mask in enumerate(masks):
        assert not any(np.array_equal(mask, other) for other in masks[:index])


def assert_drops_as(
    reference: torch.nn.Module, registry_name: str, img_size: tuple[int, int], **fields: Any
) -> None:
    """Mean, spread and distribution of every logit over many draws of all dropouts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(parameter[0].numel(), 2) ** 0.5)
    model = abstract_model(registry_name, img_size=img_size, **fields)
    vit_jax.load_state_dict(model, reference.state_dict())
    image = np.random.default_rng(0).normal(size=(1, *img_size, 3)).astype(np.float32)
    batch = np.broadcast_to(image, (DRAWS, *image.shape[1:]))
    with torch.no_grad():
        theirs = reference.train()(torch.tensor(batch.transpose(0, 3, 1, 2))).numpy()
    ours = np.asarray(calls.logits(model, jnp.asarray(batch), calls.dropout_key(0)))
    assert ours.std(axis=0).min() > 1e-3  # dropout was active
    for own, other in zip(ours.T, theirs.T, strict=True):
        error = STANDARD_ERRORS * np.sqrt((own.var() + other.var()) / DRAWS)
        assert abs(own.mean() - other.mean()) < error
        # The standard error of a variance, by the fourth moment.
        error = np.sqrt(sum(np.var(np.square(x - x.mean())) for x in (own, other)) / DRAWS)
        assert abs(own.var() - other.var()) < STANDARD_ERRORS * error
        assert scipy.stats.ks_2samp(own, other).pvalue > SMALLEST_P_VALUE
