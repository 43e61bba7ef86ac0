"""A training run beside PyTorch, number by number."""

import dataclasses
import json
from collections.abc import Iterator

import matplotlib.image
import numpy as np
import pytest
import torch

from tests.parity.equal_steps import run_both, save, without_chance
from vit_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

# The two sides sum in another order, and Adam divides such differences by gradients that shrink.
# On CIFAR-10 at full size 200 steps differ by 1.2e-14 in a loss (`equal_steps`); Adam's epsilon at
# 1e-7 shows at 1000 times the tolerance within 20 steps.
TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads wait for each other in a loop, which takes ten times the work's time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> TrainConfig:
    fields = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 16}
    fields |= {"depth": 2, "num_heads": 2, "mlp_dim": 32, "mlp_head_units": (32,)}
    return without_chance(
        TrainConfig(
            num_epochs=6,
            model=ModelConfig(name="vit_classifier", kwargs=fields),
            data=DataConfig(source="digits", batch_size=32, num_workers=0),
            optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4),
        )
    )


@pytest.mark.slow  # ten steps of every design: tests/parity/test_golden.py
def test_200_steps_are_those_of_pytorch(x64, config):
    losses, differences = run_both(config, 200)
    assert losses.shape == (200, 2)
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()  # it has learnt something
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=0, atol=TOLERANCE)
    # The gradient of a key's bias is zero but for rounding, which Adam blows up; it has no effect.
    del differences["transformer_layers.0.attn.in_proj_bias"]
    del differences["transformer_layers.1.attn.in_proj_bias"]
    assert max(differences.values()) < TOLERANCE


@pytest.mark.slow
def test_another_constant_is_seen(x64, config, monkeypatch):
    """Adam's epsilon, 1e-7 in place of 1e-8, moves the losses by far more than the tolerance."""
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=1e-7))
    losses, _ = run_both(other, 20)
    assert np.abs(losses[:, 0] - losses[:, 1]).max() > 1000 * TOLERANCE


def test_losses_and_their_picture_are_written(tmp_path):
    """Equal losses too, which a logarithmic axis cannot show as they are."""
    save(np.array([[2.0, 2.0], [1.5, 1.5 + 1e-14]]), "a test", tmp_path / "new")
    losses = json.loads((tmp_path / "new/equal_steps.json").read_text())
    assert losses == {"vit_jax": [2.0, 1.5], "pytorch": [2.0, 1.5 + 1e-14]}
    assert matplotlib.image.imread(tmp_path / "new/equal_steps.png").shape == (780, 960, 4)
