"""Outputs of blocks: PyTorch's, in every form of a model."""

import os
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import golden
from tests.models import calls
from tests.models.families import build, drops, images, named, rms
from tests.parity import compare
from vit_jax.models.registry import abstract_model

# Where the blocks differ most; VIT_JAX_FIXTURES=all takes all that there are.
FIXTURES = [
    "tiny_seed000_literal",
    "tiny_t2t_dense",
    "tiny_timm_vit_reg_qknorm",
]
if os.environ.get("VIT_JAX_FIXTURES") == "all":
    FIXTURES = golden.names("tiny") + golden.names("full")
_BLOCK = re.compile(r"(blocks|transformer_layers?|transformer_encoder\.layers)\.(\d+)(?:#(\d+))?$")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", FIXTURES)
def test_equal_the_fixtures(name: str) -> None:
    """To the tolerance of the parity tests; the last one, normed, is `forward_features`."""
    fixture = golden.load(name)
    model = fixture.build(jnp.float64)
    names = [match for match in map(_BLOCK.match, fixture.spec["activations"]) if match]

    @jax.jit
    def run(batch):
        outputs = model.forward_intermediates(batch)
        (last,) = model.forward_intermediates(batch, 1, norm=True)
        return outputs, last, model.forward_features(batch)

    outputs, last, features = run(jnp.asarray(fixture.images, jnp.float64))
    assert len(outputs) == len(names)
    got, want, scales = {}, {}, {}
    for match in names:
        stage, output = match[0], np.asarray(outputs[int(match[2]) + int(match[3] or 0)])
        assert list(output.shape) == fixture.spec["activations"][stage]["shape"]
        mean, l2 = fixture.arrays[f"act_stats/{stage}"]
        got[stage], want[stage] = output[:, :4, :16], fixture.arrays[f"act/{stage}"]
        got[f"{stage} mean"], want[f"{stage} mean"] = output.mean(), mean
        scales |= dict.fromkeys((stage, f"{stage} mean"), l2 / np.sqrt(output.size))
    compare.assert_close(got, want, scales, compare.FLOAT64)
    np.testing.assert_allclose(last, features, rtol=0, atol=1e-13 * rms(features))


def intermediates(model: nnx.Module, batch: jax.Array) -> list[jax.Array]:
    return model.forward_intermediates(batch, [1, -3], rngs=nnx.Rngs(calls.dropout_key(3)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "form", [{"scan_layers": True}, pytest.param({"remat": "blocks"}, marks=pytest.mark.slow)]
)
def test_scanned_and_rematerialised_equal_the_plain_form(form: dict) -> None:
    """With dropout, so that the keys are the same too."""
    models = [build("vit", jnp.float64, **drops("vit"), **fields) for fields in ({}, form)]
    plain, other = (calls.compiled(intermediates, m, images(jnp.float64)) for m in models)
    chex.assert_trees_all_close(other, plain, rtol=0, atol=1e-12)
    assert rms(plain[0] - plain[1]) > 0.1


def test_no_block_after_the_last_runs() -> None:
    for form in ({}, {"scan_layers": True}):
        model = build("vit", **form)
        model.eval()
        graph, state = nnx.split(model)

        def run(state, batch, graph=graph):
            return nnx.merge(graph, state).forward_intermediates(batch, [0])

        text = str(jax.make_jaxpr(run)(state, images()))
        assert text.count("exp ") == 1, form  # one softmax
        assert "length=1" in text or not form


@pytest.mark.usefixtures("promoting")
def test_half_precision_stays_half() -> None:
    name, fields = named("vit", "bfloat16", param_dtype=jnp.float32)
    outputs = jax.eval_shape(
        lambda model, x: model.forward_intermediates(x, norm=True),
        abstract_model(name, **fields),
        images(),
    )
    assert {output.dtype for output in outputs} == {jnp.dtype("bfloat16")}


def test_which_blocks_and_in_which_layout() -> None:
    model = build("vit", reg_tokens=2)

    @jax.jit
    def run(batch):
        chosen = [model.forward_intermediates(batch, which) for which in (None, 2, (-1, 0))]
        return *chosen, model.forward_intermediates(batch, [1], layout="NHWC")

    every, last, other, (grid,) = run(images())
    assert [x.shape for x in every] == [(2, 9, 8)] * 3
    chex.assert_trees_all_equal(last, every[1:])
    chex.assert_trees_all_equal(other, [every[2], every[0]])
    assert grid.shape == (2, 2, 3, 8)
    np.testing.assert_array_equal(grid[:, 1, 2], every[1][:, 3 + 5])
    assert model.prefix_tokens == ("class", "register", "register")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": [3]}, r"blocks from -3 to 2, got \[3\]"),
        ({"indices": [-4]}, "indices must be an int of at least -3, got -4"),
        ({"indices": 4}, "indices=4 is the last blocks: this model has 3"),
        ({"indices": 0}, "indices must be an int of at least 1, got 0"),
        ({"layout": "NCHW"}, r"layout must be one of \('NLC', 'NHWC'\), got 'NCHW'"),
    ],
)
def test_what_is_not_there(arguments: dict, message: str) -> None:
    model = build("vit")
    model.eval()
    with pytest.raises(ValueError, match=message):
        model.forward_intermediates(images(), **arguments)


def test_the_norm_of_a_dense_model_fits_its_last_block_alone() -> None:
    name, fields = named("t2t dense")
    model = abstract_model(name, **fields)
    with pytest.raises(ValueError, match="the last norm is 14 wide and these tokens 12"):
        jax.eval_shape(
            lambda model, x: model.forward_intermediates(x, [0], norm=True), model, images()
        )
