"""Initial values are distributed as PyTorch's own initialisers make them, kind by kind.

Every array of our model is held against the same array of the PyTorch reference, which calls
torch.nn.init: constants bit by bit; samples by mean and standard deviation (five standard errors),
bounds, and a two-sample Kolmogorov-Smirnov test. Seeds are fixed, so the tests cannot flicker.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from flax import nnx

import vit_jax
from tests.models.families import FAMILIES
from tests.reference.classifier_vit import ClassifierViT
from tests.reference.vit import VisionTransformer
from vit_jax.layers.initializers import mimetic_kernels
from vit_jax.layers.position import grid_sinusoid_table

STANDARD_ERRORS = 5.0
SMALLEST_P_VALUE = 1e-5


def assert_same_distribution(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape, name
    assert ours.dtype == theirs.dtype == np.float32, name
    if np.ptp(theirs) == 0:
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        return
    ours, theirs = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
    std, n = theirs.std(), len(theirs)
    assert abs(ours.mean() - theirs.mean()) < STANDARD_ERRORS * std * np.sqrt(2 / n), name
    # The standard error of a normal's std, which is above a uniform's.
    assert abs(ours.std() / std - 1) < STANDARD_ERRORS / np.sqrt(n), name
    # The largest of n normals is at most a standard deviation from that of n others; a uniform's
    # bound is met to a few of its n-th parts.
    for own, other in ((ours.min(), theirs.min()), (ours.max(), theirs.max())):
        assert abs(own - other) < 1.5 * std, name
    if np.abs(theirs).max() < 1.8 * std:  # uniform: its bound is sqrt(3) standard deviations
        assert abs(np.abs(ours).max() / np.abs(theirs).max() - 1) < 20 / n, name
    assert scipy.stats.ks_2samp(ours, theirs).pvalue > SMALLEST_P_VALUE, name


def assert_initialised_as(
    reference: torch.nn.Module, registry_name: str, **fields: Any
) -> dict[str, np.ndarray]:
    """Returns the initial values."""
    theirs = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    ours = vit_jax.state_dict(vit_jax.create_model(registry_name, rngs=nnx.Rngs(1), **fields))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_same_distribution(name, ours[name], theirs[name])
    return ours


def assert_layers_differ(weights: dict[str, np.ndarray], first: str, second: str) -> None:
    """Layers start independently, but for constants."""
    drawn = [name for name in weights if first in name and np.ptp(weights[name]) > 0]
    assert drawn
    for name in drawn:
        assert not np.array_equal(weights[name], weights[name.replace(first, second)]), name


SMALL = {"img_size": 64, "embed_dim": 192, "depth": 1, "num_heads": 3, "num_classes": 300}
NO_BLOCK = {"depth": 0}  # they are those of the first case


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_small_patch16_224", {"reg_tokens": 4, "qk_norm": True, "representation_size": 200}),
        ("vit_small_patch16_224", {"global_pool": "avg", **NO_BLOCK}),
        ("deit_tiny_distilled_patch16_224", {"distilled": True, **NO_BLOCK}),
        ("deit3_small_patch16_224", {"no_embed_class": True, "init_values": 1e-6}),
    ],
)
def test_timm(name: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fields = {**SMALL, **fields}
    assert_initialised_as(VisionTransformer(**fields), name, **fields)


def test_seed_004() -> None:
    """`weight_init="kaiming_conv"`: std 0.01 for Linear, Kaiming over fan_out for the patches."""
    torch.manual_seed(0)
    reference = VisionTransformer(**SMALL, distilled=True)
    with torch.no_grad():
        torch.nn.init.trunc_normal_(reference.cls_token, std=0.02)
        for module in reference.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.trunc_normal_(module.weight, std=0.01)
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
                torch.nn.init.zeros_(module.bias)
    fields = {**SMALL, "distilled": True, "weight_init": "kaiming_conv"}
    assert_initialised_as(reference, "vit_base_patch16_224", **fields)


def test_mimetic() -> None:
    """`weight_init="mimetic"`: W_q W_k^T is 0.7 (Z + I), W_v W_proj is 0.4 (Z - I)."""
    fields = {**SMALL, "embed_dim": 96, "depth": 2, "num_heads": 1, "weight_init": "mimetic"}
    model = vit_jax.create_model("vit_small_patch16_224", rngs=nnx.Rngs(1), **fields)
    weights = vit_jax.state_dict(model)
    torch.manual_seed(0)
    for block in ("blocks.0.", "blocks.1."):
        q, k, v = np.split(weights[f"{block}attn.qkv.weight"], 3)
        for product, factor, identity in (
            (q.T @ k, 0.7, np.eye(96)),
            (v.T @ weights[f"{block}attn.proj.weight"].T, 0.4, -np.eye(96)),
        ):
            noise = (product / factor - identity).astype(np.float32)
            theirs = torch.randn(96, 96) / np.sqrt(96)
            assert_same_distribution(block, noise, theirs.numpy())
        theirs = torch.nn.init.xavier_uniform_(torch.empty(384, 96)).numpy()
        assert_same_distribution(block, weights[f"{block}mlp.fc1.weight"], theirs)
    assert_layers_differ(weights, "blocks.0.", "blocks.1.")
    class_token, *grid = weights["pos_embed"][0]
    assert not class_token.any()
    np.testing.assert_array_equal(grid, grid_sinusoid_table((4, 4), 96).astype(np.float32))


def test_mimetic_heads_are_the_best_of_their_rank() -> None:
    """A head of a third of the width holds the largest third of what one of all of it would."""
    kernel, _ = mimetic_kernels(jax.random.key(0), 96, 3, jnp.float32)
    q, k = np.asarray(kernel)[:, :32], np.asarray(kernel)[:, 96:128]
    scales = np.linalg.svd(q @ k.T, compute_uv=False)
    # 0.7 (Z + I) has none above 0.7 * (2 + 1), and their root mean square is 0.7 * sqrt(2).
    assert 0.7 < scales[31] < scales[0] < 2.1
    assert scales[32] < 1e-5
    np.testing.assert_allclose(q.T @ q, k.T @ k, atol=1e-5)  # the scales are shared evenly


def test_classifier() -> None:
    torch.manual_seed(0)
    fields = {"depth": 2, "embed_dim": 128, "class_token_batch": 8, "mlp_head_units": (300, 200)}
    weights = assert_initialised_as(ClassifierViT(**fields), "vit_classifier", **fields)
    assert_layers_differ(weights, "layers.0.", "layers.1.")


def test_new_head_is_initialised_like_the_first() -> None:
    fields = {**SMALL, **NO_BLOCK}
    model = vit_jax.create_model("vit_small_patch16_224", rngs=nnx.Rngs(1), **fields)
    before = vit_jax.state_dict(model)
    model.reset_classifier(300, rngs=nnx.Rngs(2))
    after = vit_jax.state_dict(model)
    assert not np.array_equal(after["head.weight"], before["head.weight"])
    for name in before:
        assert_same_distribution(name, after[name], before[name])


def test_seed_decides_every_value() -> None:
    def weights(seed: int) -> dict[str, np.ndarray]:
        name, fields = FAMILIES["distilled"]
        return vit_jax.state_dict(vit_jax.create_model(name, rngs=nnx.Rngs(seed), **fields))

    first, again, other = weights(0), weights(0), weights(1)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        if np.ptp(array) > 0:
            assert not np.array_equal(array, other[name]), name


def test_the_comparison_sees_a_truncated_normal() -> None:
    """JAX's own `truncated_normal(.02)` has a std of .0176 and must not pass for torch's."""
    shape = (384, 384)
    torch.manual_seed(0)
    theirs = torch.nn.init.trunc_normal_(torch.empty(shape), std=0.02).numpy()
    wrong = jax.nn.initializers.truncated_normal(0.02)(jax.random.key(0), shape)
    with pytest.raises(AssertionError):
        assert_same_distribution("weight", np.asarray(wrong), theirs)
    right = jax.nn.initializers.normal(0.02)(jax.random.key(0), shape)
    assert_same_distribution("weight", np.asarray(right), theirs)
