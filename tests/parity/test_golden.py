"""Every number of the golden fixtures: outputs, stages, gradients and ten steps of training."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests import golden
from tests.golden import Golden
from tests.parity import compare
from tests.parity.evaluation import Runner, optax_adamw, torch_adamw
from tests.tiers import mostly_slow
from vit_jax.layers.variables import Frozen
from vit_jax.models.registry import abstract_model, model_fields

TINY, FULL = golden.names("tiny"), golden.names("full")
ONE_OF_EACH_TEXT = [
    "tiny_seed000_batch_first",
    "tiny_seed001_shared",
    "tiny_seed003",
    "tiny_seed004_distilled",
    "tiny_t2t_performer",
    "tiny_timm_deit3",
    "tiny_vitpy",
]
# The same text with one field another, whose value is another fixture's too.
FURTHER = ["tiny_seed000_batch_first_shared_cls", "tiny_seed003_shared_cls"]


def assert_float64(fixture: Golden, record: compare.Record) -> None:
    model = fixture.build(jnp.float64)
    assert_arrays(fixture, model)
    assert_gives_back_every_bit(fixture, model, "float64")
    runner = Runner(fixture, model, jnp.float64)
    result = runner.evaluate()
    compare.assert_forward(fixture, result.logits, result.stages, record)
    compare.assert_gradients(fixture, result, record)
    losses, trained = runner.train(optax_adamw)
    compare.assert_trajectory(fixture, losses, trained, record)
    if "traj_loss_frozen_f64" in fixture.arrays:
        assert_trajectory_with_the_patch_matrix_frozen(fixture, runner, losses, record)


def assert_float32(fixture: Golden, record: compare.Record) -> None:
    model = fixture.build(jnp.float32)
    assert_gives_back_every_bit(fixture, model, "float32")
    runner = Runner(fixture, model, jnp.float32)
    compare.assert_float32(fixture, runner.evaluate(), record)
    losses, _ = runner.train(torch_adamw)
    compare.assert_float32_losses(fixture, losses, record)


def assert_arrays(fixture: Golden, model: nnx.Module) -> None:
    """As many numbers as in PyTorch, and as many of them trained."""
    assert size_of(model, nnx.Param) == fixture.spec["param_count_trainable"]
    assert size_of(model, (nnx.Param, Frozen)) == fixture.spec["param_count_total"]
    frozen = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, Frozen))}
    assert frozen == set(fixture.spec["non_trainable"])


def size_of(model: nnx.Module, *filters: Any) -> int:
    return sum(variable.size for _, variable in nnx.to_flat_state(nnx.state(model, *filters)))


def assert_gives_back_every_bit(fixture: Golden, model: nnx.Module, dtype: str) -> None:
    want = {key: value.astype(dtype) for key, value in fixture.params.items()}
    chex.assert_trees_all_equal(vit_jax.state_dict(model), want, strict=True)


def assert_trajectory_with_the_patch_matrix_frozen(
    fixture: Golden, runner: Runner, trained_too: np.ndarray, record: compare.Record
) -> None:
    """As in seed 000's text, whose `weight` wants no gradient: it is neither moved nor decayed."""
    losses, trained = runner.train(optax_adamw, frozen=["patch_embed"])
    np.testing.assert_array_equal(trained["weight"], fixture.params["weight"])
    want = fixture.arrays["traj_loss_frozen_f64"]
    scales = {"": compare.rms(want)}
    worst = compare.assert_close({"": losses}, {"": want}, scales, compare.FLOAT64)
    record("trajectory, patch matrix frozen", worst)
    if fixture.name != "tiny_seed000_literal":  # where the matrix has no gradient, no influence
        assert np.max(np.abs(losses - trained_too)) > 1e-6


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(TINY, set(TINY) - {*FURTHER}))
def test_float64(name: str, record: compare.Record) -> None:
    """One test a fixture: its parts share one compilation."""
    assert_float64(golden.load(name), record)


@pytest.mark.parametrize("name", mostly_slow(TINY, ONE_OF_EACH_TEXT))
def test_float32(name: str, record: compare.Record) -> None:
    assert_float32(golden.load(name), record)


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(TINY, ["tiny_timm_vit"]))
def test_float64_optimised(name: str, record: compare.Record) -> None:
    """As XLA compiles for users."""
    assert_float64(golden.load(name), record)


@pytest.mark.optimised
@pytest.mark.parametrize("name", mostly_slow(TINY, ["tiny_timm_vit"]))
def test_float32_optimised(name: str, record: compare.Record) -> None:
    assert_float32(golden.load(name), record)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(FULL, ["full_seed003_cifar100", "full_t2t_vit_14"]))
def test_full_size_float64(name: str, record: compare.Record) -> None:
    fixture = golden.load(name)
    runner = Runner(fixture, fixture.build(jnp.float64), jnp.float64)
    compare.assert_forward(fixture, *runner.forward(), record)


@pytest.mark.parametrize("name", FULL)
def test_trained_and_frozen_arrays_of_full_size(name: str) -> None:
    fixture = golden.load(name)
    registered, fields = fixture.registry_name_and_fields()
    assert_arrays(fixture, abstract_model(registered, **fields))


SEED004 = [name for name in TINY if "seed004" in name]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(SEED004, ["tiny_seed004"]))
def test_norm_eps_field(name: str) -> None:
    """Seed 004's epsilon is 1e-5; its fixtures hold the logits at 1e-6 too."""
    fixture = golden.load(name)
    runner = Runner(fixture, fixture.build(norm_eps=1e-6), jnp.float64)
    logits, _ = runner.forward()
    want = fixture.arrays["logits_eps1e-6_f64"]
    compare.assert_close({"": logits}, {"": want}, {"": compare.rms(want)}, compare.FLOAT64)


DISTILLED = [name for name in TINY + FULL if golden.load(name).distilled]


# Of one the fixture's logits are the mean of both heads, of the other the class head's.
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", mostly_slow(DISTILLED, ["tiny_timm_deit_distilled", "tiny_seed004_distilled"])
)
def test_heads_of_distilled_models(name: str) -> None:
    """Train mode answers with both heads, eval mode with their mean."""
    fixture = golden.load(name)

    @nnx.jit
    def answers(model: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        average = model(images)
        model.train()
        return average, *model(images)

    average, cls, dist = answers(fixture.build(), np.asarray(fixture.images, np.float64))
    want = {
        "cls": fixture.arrays["logits_cls_f64"],
        "dist": fixture.arrays["logits_dist_f64"],
        "average": fixture.arrays["logits_avg_f64" if fixture.class_head_only else "logits_f64"],
    }
    got = {"cls": cls, "dist": dist, "average": average}
    scales = {part: compare.rms(value) for part, value in want.items()}
    compare.assert_close(got, want, scales, compare.FLOAT64)


PATCHIFY = [
    name
    for name in TINY
    if "patchify" in model_fields(golden.load(name).registry_name_and_fields()[0])
]


# One of each registered model that has both; seed 000's are in test_seeds.py.
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", mostly_slow(PATCHIFY, ["tiny_timm_vit", "tiny_seed001_shared", "tiny_seed003"])
)
def test_im2col_equals_convolution(name: str) -> None:
    """The same weights through both patch embeddings, to 1e-13 of the logits' rms."""
    fixture = golden.load(name)
    images = np.asarray(fixture.images, np.float64)
    conv, unfold = (
        jax.jit(fixture.build(patchify=patchify))(images) for patchify in ("conv", "unfold")
    )
    scales = {"logits": compare.rms(np.asarray(conv))}
    compare.assert_close({"logits": unfold}, {"logits": conv}, scales, 1e-13)


COMPUTED = [name for name in TINY if golden.load(name).spec["computed"]]


@pytest.mark.parametrize("name", mostly_slow(COMPUTED, ["tiny_t2t_performer", "tiny_t2t_dense"]))
def test_computed_tables_are_in_a_fresh_model(name: str) -> None:
    fixture = golden.load(name)
    registered, fields = fixture.registry_name_and_fields()
    assert list(fixture.spec["computed"]) == ["pos_embed"]

    @jax.jit  # all else is not computed
    def table() -> jax.Array:
        return vit_jax.create_model(registered, rngs=nnx.Rngs(0), **fields).pos_embed[...]

    np.testing.assert_array_equal(table(), fixture.params["pos_embed"])
