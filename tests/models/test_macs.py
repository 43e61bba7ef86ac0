"""Multiply-accumulates against formulas written by hand and against published figures."""

import jax
import jax.numpy as jnp
import pytest

from tests.tiers import mostly_slow
from vit_jax.models.macs import count_macs
from vit_jax.models.registry import abstract_model

SQUARE = jax.ShapeDtypeStruct((3, 3), jnp.float32)


def macs(name: str, **fields) -> int:
    model = abstract_model(name, **fields)
    image = jax.ShapeDtypeStruct((1, *model.img_size, model.in_chans), jnp.float32)
    return count_macs(model, image)


@jax.custom_jvp
def with_jvp(x):
    return x @ x


@jax.custom_vjp
def with_vjp(x):
    return x @ x


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))
with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, gradient: (gradient,))


def scanned(x):
    return jax.lax.scan(lambda carry, _: (with_vjp(carry), None), x, length=5)[0]


def chosen(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: x @ x + jnp.tanh(x) * x.sum(), 1),
        (jax.vmap(lambda row: row[None] @ row[:, None]), 1 / 3),
        (jax.jit(with_jvp), 1),
        (with_vjp, 1),
        (jax.checkpoint(with_jvp), 1),
        (scanned, 5),
        (jax.jit(chosen), 2),
    ],
)
def test_products_are_found_wherever_they_stand(function, products):
    assert count_macs(function, SQUARE) == products * 3**3


def test_what_each_device_of_a_shard_map_does_counts():
    mesh, rows = jax.sharding.AbstractMesh((4,), ("d",)), jax.sharding.PartitionSpec("d")
    square = jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=rows, out_specs=rows)
    assert count_macs(square, jax.ShapeDtypeStruct((8, 3, 3), jnp.float32)) == 8 * 3**3


def test_convolutions():
    """Strides, padding and groups; (H, W, C in a group, C out)."""
    images = jax.ShapeDtypeStruct((2, 9, 7, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 6), jnp.float32)

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (2, 2),
            [(1, 1), (1, 1)],
            feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    assert count_macs(convolve, images, kernel) == 2 * (5 * 4) * 6 * (3 * 3 * 2)


def test_a_loop_of_unknown_length_is_refused():
    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="inside 'while' run"):
        count_macs(loop, SQUARE)


def vit_macs(*, tokens: int, dim: int, depth: int, patch: int, attention: bool = True) -> int:
    """Patches of 3 channels, one class token, an MLP of 4, 1000 classes."""
    linears = (3 + 1 + 4 + 4) * tokens * dim * dim
    products = 2 * tokens * tokens * dim if attention else 0
    return (tokens - 1) * 3 * patch**2 * dim + depth * (linears + products) + 1000 * dim


def test_vit_base_is_the_formula():
    shape = {"tokens": 197, "dim": 768, "depth": 12, "patch": 16}
    count = macs("vit_base_patch16_224")
    assert count == vit_macs(**shape) == 17_563_828_224
    # Often quoted: 16.85 G and less, which is without the two products of attention.
    assert count - vit_macs(**shape, attention=False) == 12 * 2 * 197**2 * 768 == 715_327_488


def test_the_form_of_a_model_does_not_matter():
    name = "vit_tiny_patch16_224"
    for fields in ({}, {"scan_layers": True}, {"patchify": "unfold"}, {"remat": "dots"}):
        count = macs(name, depth=2, **fields)
        assert count == vit_macs(tokens=197, dim=192, depth=2, patch=16), fields


# In G, of the release; 13.8 of t2t_vit_24 is not among them: 15.0 of its softmax form less the 1.3
# by which each other pair differs is 13.7, as is counted here (13.66).
PUBLISHED = [("t2t_vit_7", 1.1), ("t2t_vit_14", 4.8), ("t2t_vit_t_14", 6.1), ("t2t_vit_t_24", 15.0)]


@pytest.mark.parametrize(("name", "published"), mostly_slow(PUBLISHED, PUBLISHED[::2]))
def test_published_macs_of_t2t(name, published):
    """They count the products of attention, which are 1.3 G in the softmax token module alone."""
    assert round(macs(name) / 1e9, 1) == published


def test_a_model_in_train_mode_is_counted_and_left_so():
    fields = {"img_size": 12, "depth": 1, "drop_rate": 0.5}
    model = abstract_model("vit_classifier", **fields)
    assert count_macs(model, jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)) > 0
    assert not model.deterministic
