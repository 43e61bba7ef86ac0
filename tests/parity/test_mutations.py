"""Each error a port is likely to hold must fail the very check that the golden tests use."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests import golden
from tests.golden import Golden
from tests.parity import compare
from tests.parity.evaluation import Runner, optax_adamw
from tests.tiers import mostly_slow
from vit_jax.models.registry import model_fields

pytestmark = pytest.mark.usefixtures("x64")

Patch = pytest.MonkeyPatch
Mutation = Callable[[Golden, Patch], nnx.Module]


def check(fixture: Golden, model: nnx.Module) -> None:
    """The forward half of test_golden.test_float64."""
    logits, stages = Runner(fixture, model, jnp.float64).forward()
    compare.assert_forward(fixture, logits, stages, lambda stage, figure: None)


def with_weights(fixture: Golden, suffix: str, change: Callable[[np.ndarray], Any]) -> nnx.Module:
    """The fixture's model with every array changed whose name ends so."""
    changed = {
        name: change(array.copy())
        for name, array in fixture.params.items()
        if name.endswith(suffix)
    }
    assert changed, f"{fixture.name} has no {suffix}"
    model = fixture.build()
    vit_jax.load_state_dict(model, {**fixture.params, **changed})
    return model


def tanh_gelu(fixture: Golden, patch: Patch) -> nnx.Module:
    exact = jax.nn.gelu
    patch.setattr(jax.nn, "gelu", lambda x, approximate=True: exact(x, approximate=True))
    return fixture.build()


def layer_norm_epsilon(fixture: Golden, patch: Patch) -> nnx.Module:
    name, fields = fixture.registry_name_and_fields()
    stated = {**model_fields(name), **fields}["norm_eps"]
    return fixture.build(norm_eps={1e-6: 1e-5, 1e-5: 1e-6}[stated])


def query_key_value_order(fixture: Golden, patch: Patch) -> nnx.Module:
    suffix = "in_proj_weight" if "seed003" in fixture.name else "qkv.weight"
    return with_weights(fixture, suffix, lambda stacked: np.concatenate(np.split(stacked, 3)[::-1]))


class Identity(nnx.Module):
    def __call__(self, x):
        return x


def missing_final_norm(fixture: Golden, patch: Patch) -> nnx.Module:
    model = fixture.build()
    model.norm = Identity()
    return model


def channels_last_patches(fixture: Golden, patch: Patch) -> nnx.Module:
    if "seed003" in fixture.name:
        size = fixture.spec["kwargs"]["patch_size"]
        return with_weights(
            fixture,
            "projection_layer.weight",
            lambda w: w.reshape(len(w), 3, size, size).transpose(0, 2, 3, 1).reshape(w.shape),
        )
    return with_weights(
        fixture, "patch_embed.proj.weight", lambda w: w.transpose(0, 2, 3, 1).reshape(w.shape)
    )


def class_token_after_positions(fixture: Golden, patch: Patch) -> nnx.Module:
    """A class token prepended to tokens that have their positions gets none of its own."""

    def without_first(table: np.ndarray) -> np.ndarray:
        table[..., 0, :] = 0
        return table

    suffix = "position_emb.weight" if "seed003" in fixture.name else "pos_embed"
    return with_weights(fixture, suffix, without_first)


def class_head_alone(fixture: Golden, patch: Patch) -> nnx.Module:
    """The mean of two equal heads is the class head's answer."""
    model = fixture.build()
    heads = {
        name.replace("head.", "head_dist."): array
        for name, array in fixture.params.items()
        if name.startswith("head.")
    }
    vit_jax.load_state_dict(model, {**fixture.params, **heads})
    return model


def attention_scale(fixture: Golden, patch: Patch) -> nnx.Module:
    return fixture.build(qk_scale=fixture.spec["kwargs"]["embed_dim"] ** -0.5)


def transposed_kernel(fixture: Golden, patch: Patch) -> nnx.Module:
    suffix = "0.attn.out_proj.weight" if "seed003" in fixture.name else "0.attn.proj.weight"
    return with_weights(fixture, suffix, np.transpose)


def dropout_in_eval(fixture: Golden, patch: Patch) -> nnx.Module:
    model = fixture.build(drop_rate=0.1)
    patch.setattr(type(model), "dropout_key", lambda self, rngs: jax.random.key(0))
    return model


MUTATIONS: list[tuple[Mutation, str]] = [
    (tanh_gelu, "tiny_timm_vit"),
    (tanh_gelu, "tiny_seed003"),
    (layer_norm_epsilon, "tiny_timm_vit"),
    (layer_norm_epsilon, "tiny_seed004"),
    (layer_norm_epsilon, "tiny_seed003"),
    (query_key_value_order, "tiny_timm_vit"),
    (query_key_value_order, "tiny_seed003"),
    (missing_final_norm, "tiny_timm_vit"),
    (channels_last_patches, "tiny_timm_vit"),
    (channels_last_patches, "tiny_seed003"),
    (class_token_after_positions, "tiny_timm_vit"),
    (class_token_after_positions, "tiny_seed003"),
    (class_head_alone, "tiny_timm_deit_distilled"),
    (attention_scale, "tiny_timm_vit"),
    (transposed_kernel, "tiny_timm_vit"),
    (transposed_kernel, "tiny_seed003"),
    (dropout_in_eval, "tiny_timm_vit"),
    (dropout_in_eval, "tiny_seed003"),
]
# The rest show for more arrays and operations that the check sees what these show.
FAST = [
    (layer_norm_epsilon, "tiny_seed004"),
    (transposed_kernel, "tiny_seed003"),
    (class_token_after_positions, "tiny_timm_vit"),
    (class_head_alone, "tiny_timm_deit_distilled"),
    (dropout_in_eval, "tiny_timm_vit"),
]


def id_of(part: Any) -> str:
    return part if isinstance(part, str) else part.__name__


@pytest.mark.parametrize(("mutate", "name"), mostly_slow(MUTATIONS, FAST), ids=id_of)
def test_mutation_fails_parity(mutate: Mutation, name: str, monkeypatch: Patch) -> None:
    fixture = golden.load(name)
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        check(fixture, mutate(fixture, monkeypatch))


@pytest.mark.parametrize("name", mostly_slow(sorted({n for _, n in MUTATIONS}), ["tiny_timm_vit"]))
def test_unmutated_model_passes(name: str) -> None:
    """The check that the mutations fail is one that the model itself passes, dropout set or not."""
    fixture = golden.load(name)
    check(fixture, fixture.build())
    check(fixture, fixture.build(drop_rate=0.1))


def test_wrong_gradient_fails_parity(monkeypatch: Patch) -> None:
    """The right values with the derivative of the tanh form."""
    fixture, exact = golden.load("tiny_timm_vit"), jax.nn.gelu

    def gelu(x, approximate=True):
        approximate = exact(x, approximate=True)
        return approximate + jax.lax.stop_gradient(exact(x, approximate=False) - approximate)

    monkeypatch.setattr(jax.nn, "gelu", gelu)
    result = Runner(fixture, fixture.build(), jnp.float64).evaluate()
    compare.assert_forward(fixture, result.logits, result.stages, lambda stage, figure: None)
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        compare.assert_gradients(fixture, result, lambda stage, figure: None)


@functools.cache
def runner_of_seed003() -> Runner:
    fixture = golden.load("tiny_seed003")
    return Runner(fixture, fixture.build(), jnp.float64)


@pytest.mark.xdist_group("wrong optimizers")
@pytest.mark.parametrize("constant", [{"eps": 1e-7}, {"weight_decay": 0.0}, {"betas": [0.9, 0.99]}])
def test_wrong_optimizer_fails_parity(constant: dict[str, Any]) -> None:
    fixture, runner = golden.load("tiny_seed003"), runner_of_seed003()
    losses, trained = runner.train(lambda recipe: optax_adamw({**recipe, **constant}))
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        compare.assert_trajectory(fixture, losses, trained, lambda stage, figure: None)
