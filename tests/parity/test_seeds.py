"""Seeds 000 and 001: what their fixtures hold beyond those of the other families."""

import fnmatch
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests import golden
from tests.golden import Golden, weights
from tests.parity import compare
from tests.parity.evaluation import Runner
from tests.parity.test_mutations import id_of
from tests.tiers import mostly_slow
from vit_jax.layers.encoder_layer import TransformerEncoderLayer
from vit_jax.layers.stack import stack_layers

ENCODER = [name for name in golden.names("tiny") if "seed000" in name]


def forward(fixture: Golden, model: nnx.Module, record: compare.Record) -> None:
    logits, stages = Runner(fixture, model, jnp.float64).forward()
    compare.assert_forward(fixture, logits, stages, record)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(ENCODER, ["tiny_seed000_batch_first"]))
def test_other_form_of_the_patches(name: str, record: compare.Record) -> None:
    """The text computes its patches in both ways; the golden test has ours unfolded."""
    fixture = golden.load(name)
    forward(fixture, fixture.build(patchify="conv"), record)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name in golden.names("prim") if "encoder_layer" in name])
def test_encoder_layer(name: str, record: compare.Record) -> None:
    """`nn.TransformerEncoderLayer`: output and gradients in float64, output in float32."""
    fixture = golden.load(name)
    kwargs, source = fixture.spec["kwargs"], fixture.spec["input"]
    x = weights.make_input(tuple(source["shape"]), source["seed"])
    cotangent = weights.make_param("cotangent", x.shape, source["seed"])

    class Layer(TransformerEncoderLayer):
        """With the table of names that models have."""

        torch_names = ((r"^(self_attn)\.in_proj\.(weight|bias)$", r"\1.in_proj_\2"),)

    def run(dtype: Any) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        layer = Layer(
            kwargs["d_model"],
            kwargs["nhead"],
            kwargs["dim_feedforward"],
            batch_first=kwargs["batch_first"],
            norm_eps=kwargs["layer_norm_eps"],
            drop_rate=0.1,
            attn_drop_rate=0.1,
            dtype=dtype,
            param_dtype=dtype,
            rngs=nnx.Rngs(0),
        )
        vit_jax.load_state_dict(layer, fixture.params)
        graph, params = nnx.split(layer)

        def value(params, x):
            out = nnx.merge(graph, params)(x)
            return (out * jnp.asarray(cotangent, dtype)).sum(), out

        grad = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))
        (grads, x_grad), out = grad(params, jnp.asarray(x, dtype))
        named = vit_jax.state_dict(nnx.merge(graph, grads))
        return np.asarray(out), named, np.asarray(x_grad)

    out, grads, x_grad = run(jnp.float64)
    got, want = {"output": out, "input": x_grad}, {"output": fixture.arrays["output_f64"]}
    want["input"] = fixture.arrays["input_grad"]
    scales = {key: compare.rms(value) for key, value in want.items()}
    for index, name in enumerate(fixture.spec["grad_names"]):
        l2 = float(fixture.arrays["grad_l2"][index])
        got[name], want[name] = compare.first8(grads[name]), fixture.arrays["grad_first8"][index]
        got[f"{name} l2"], want[f"{name} l2"] = (
            np.asarray(compare.norm(grads[name])),
            np.asarray(l2),
        )
        scales[name], scales[f"{name} l2"] = l2 / np.sqrt(grads[name].size), l2
    record("output and gradients", compare.assert_close(got, want, scales, compare.FLOAT64))

    out, _, _ = run(jnp.float32)
    noise = {"": fixture.noise("output")}
    compare.assert_close({"": out}, {"": want["output"]}, noise, compare.NOISE_FLOORS)


Patch = pytest.MonkeyPatch
Mutation = Callable[[Golden, Patch], nnx.Module]


def changed(
    fixture: Golden, pattern: str, change: Callable[[np.ndarray], np.ndarray]
) -> nnx.Module:
    """The fixture's model with every array changed whose name fits the pattern."""
    names = fnmatch.filter(fixture.params, pattern)
    assert names, pattern
    model = fixture.build()
    new = {name: change(fixture.params[name]) for name in names}
    vit_jax.load_state_dict(model, {**fixture.params, **new})
    return model


def swapped_queries_and_keys(fixture: Golden, patch: Patch) -> nnx.Module:
    if fixture.name in ENCODER:

        def swap(stacked):
            q, k, v = np.split(stacked, 3)
            return np.concatenate([k, q, v])

        return changed(fixture, "*.in_proj_*", swap)
    model, other = fixture.build(), {"query": "key", "key": "query"}
    swapped = {
        re.sub(r"query|key", lambda match: other[match[0]], name): array
        for name, array in fixture.params.items()
    }
    vit_jax.load_state_dict(model, swapped)
    return model


def channels_last_patches(fixture: Golden, patch: Patch) -> nnx.Module:
    if fixture.name in ENCODER:
        dim = fixture.params["weight"].shape[1]

        def reorder(w):
            return w.reshape(3, 4, 4, dim).transpose(1, 2, 0, 3).reshape(w.shape)

        return changed(fixture, "weight", reorder)
    return changed(
        fixture, "pacth_emb.conv.weight", lambda w: w.transpose(0, 2, 3, 1).reshape(w.shape)
    )


def class_token_without_a_position(fixture: Golden, patch: Patch) -> nnx.Module:
    def without_first(table):
        return np.concatenate([np.zeros_like(table[:1]), table[1:]])

    pattern = "positon*" if fixture.name in ENCODER else "*.positional_encodings"
    return changed(fixture, pattern, without_first)


def layer_norm_epsilon(fixture: Golden, patch: Patch) -> nnx.Module:
    return fixture.build(norm_eps=1e-6)


def gelu_for_relu(fixture: Golden, patch: Patch) -> nnx.Module:
    patch.setattr(jax.nn, "relu", lambda x: jax.nn.gelu(x, approximate=False))
    return fixture.build()


def other_axis_of_attention(fixture: Golden, patch: Patch) -> nnx.Module:
    return fixture.build(batch_first=not fixture.registry_name_and_fields()[1]["batch_first"])


def first_layer_for_all(fixture: Golden, patch: Patch) -> nnx.Module:
    model = fixture.build()
    model.transformer_layer = stack_layers([model.transformer_layer[0]] * 3, scan=False)
    return model


class Identity(nnx.Module):
    def __call__(self, x):
        return x


def missing_class_token_norm(fixture: Golden, patch: Patch) -> nnx.Module:
    model = fixture.build()
    model.ln = Identity()
    return model


MUTATIONS: list[tuple[Mutation, str]] = [
    *(
        (mutate, name)
        for name in ("tiny_seed000_batch_first", "tiny_seed001_cloned")
        for mutate in (
            swapped_queries_and_keys,
            channels_last_patches,
            class_token_without_a_position,
            layer_norm_epsilon,
            gelu_for_relu,
        )
    ),
    (other_axis_of_attention, "tiny_seed000_batch_first"),
    (other_axis_of_attention, "tiny_seed000_literal"),
    (first_layer_for_all, "tiny_seed001_cloned"),
    (missing_class_token_norm, "tiny_seed001_shared"),
]
# The rest show for more arrays that the check sees what these show.
FAST = [
    (class_token_without_a_position, "tiny_seed000_batch_first"),
    (other_axis_of_attention, "tiny_seed000_literal"),
    (first_layer_for_all, "tiny_seed001_cloned"),
    (missing_class_token_norm, "tiny_seed001_shared"),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("mutate", "name"), mostly_slow(MUTATIONS, FAST), ids=id_of)
def test_mutation_fails_parity(mutate: Mutation, name: str, monkeypatch: Patch) -> None:
    fixture = golden.load(name)
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        forward(fixture, mutate(fixture, monkeypatch), lambda stage, figure: None)
