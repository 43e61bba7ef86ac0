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

pytestmark = pytest.mark.optimised
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TINY)
def test_float64(name: str, record: compare.Record) -> None:
    """One test a fixture: its parts share one compilation."""
    fixture = golden.load(name)
    runner = Runner(fixture, fixture.build(jnp.float64), jnp.float64)
    result = runner.evaluate()
    compare.assert_forward(fixture, result.logits, result.stages, record)
    compare.assert_gradients(fixture, result, record)
    compare.assert_trajectory(fixture, *runner.train(optax_adamw), record)


@pytest.mark.parametrize("name", mostly_slow(TINY, ONE_OF_EACH_TEXT))
def test_float32(name: str, record: compare.Record) -> None:
    fixture = golden.load(name)
    runner = Runner(fixture, fixture.build(jnp.float32), jnp.float32)
    compare.assert_float32(fixture, runner.evaluate(), record)
    losses, _ = runner.train(torch_adamw)
    compare.assert_float32_losses(fixture, losses, record)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(FULL, ["full_seed003_cifar100", "full_t2t_vit_14"]))
def test_full_size_float64(name: str, record: compare.Record) -> None:
    fixture = golden.load(name)
    runner = Runner(fixture, fixture.build(jnp.float64), jnp.float64)
    compare.assert_forward(fixture, *runner.forward(), record)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name in TINY if "seed004" in name])
def test_norm_eps_field(name: str) -> None:
    """Seed 004's epsilon is 1e-5; its fixtures hold the logits at 1e-6 too."""
    fixture = golden.load(name)
    runner = Runner(fixture, fixture.build(norm_eps=1e-6), jnp.float64)
    logits, _ = runner.forward()
    want = fixture.arrays["logits_eps1e-6_f64"]
    compare.assert_close({"": logits}, {"": want}, {"": compare.rms(want)}, compare.FLOAT64)


DISTILLED = [name for name in TINY + FULL if golden.load(name).distilled]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DISTILLED)
def test_heads_of_distilled_models(name: str) -> None:
    """Train mode answers with both heads, eval mode with their mean."""
    fixture = golden.load(name)
    model = fixture.build()
    images = jnp.asarray(fixture.images, jnp.float64)
    average = model(images)
    model.train()
    cls, dist = model(images)
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PATCHIFY)
def test_im2col_equals_convolution(name: str) -> None:
    """The same weights through both patch embeddings, to 1e-13 of the logits' rms."""
    fixture = golden.load(name)
    images = jnp.asarray(fixture.images, jnp.float64)
    conv, unfold = (
        jax.jit(fixture.build(patchify=patchify))(images) for patchify in ("conv", "unfold")
    )
    scales = {"logits": compare.rms(np.asarray(conv))}
    compare.assert_close({"logits": unfold}, {"logits": conv}, scales, 1e-13)


def size_of(model: nnx.Module, *filters: Any) -> int:
    return sum(variable.size for _, variable in nnx.to_flat_state(nnx.state(model, *filters)))


@pytest.mark.parametrize("name", TINY + FULL)
def test_trained_and_frozen_arrays(name: str) -> None:
    """As many numbers as in PyTorch, and as many of them trained."""
    fixture = golden.load(name)
    registered, fields = fixture.registry_name_and_fields()
    model = abstract_model(registered, **fields)
    assert size_of(model, nnx.Param) == fixture.spec["param_count_trainable"]
    assert size_of(model, (nnx.Param, Frozen)) == fixture.spec["param_count_total"]
    frozen = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, Frozen))}
    assert frozen == set(fixture.spec["non_trainable"])


@pytest.mark.parametrize("name", [name for name in TINY if golden.load(name).spec["computed"]])
def test_computed_tables_are_in_a_fresh_model(name: str) -> None:
    fixture = golden.load(name)
    registered, fields = fixture.registry_name_and_fields()
    model = vit_jax.create_model(registered, rngs=nnx.Rngs(0), **fields)
    for table in fixture.spec["computed"]:
        np.testing.assert_array_equal(vit_jax.state_dict(model)[table], fixture.params[table])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TINY)
def test_state_dict_gives_back_every_bit(name: str, dtype: str) -> None:
    fixture: Golden = golden.load(name)
    with jax.enable_x64(dtype == "float64"):
        stored = vit_jax.state_dict(fixture.build(dtype))
    want = {key: value.astype(dtype) for key, value in fixture.params.items()}
    assert stored.keys() == want.keys()
    chex.assert_trees_all_equal(stored, want, strict=True)
