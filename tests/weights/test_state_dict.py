"""State dicts as arrays in memory: copies out, any array in, all or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import vit_jax
from tests.models.families import FAMILIES, build
from vit_jax.models.registry import abstract_model


@pytest.mark.parametrize("fields", [{}, {"scan_layers": True}])
def test_arrays_are_copies(fields):
    model = build("vit", **fields)
    weights = vit_jax.state_dict(model)
    before = {name: array.copy() for name, array in weights.items()}
    for array in weights.values():
        array += 1
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_torch_tensors_of_any_type(dtype):
    model = build("vit")
    weights = {
        name: torch.nn.Parameter(torch.from_numpy(array).to(dtype))
        for name, array in vit_jax.state_dict(model).items()
    }
    vit_jax.load_state_dict(model, weights)
    for name, array in vit_jax.state_dict(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[name].detach().float().numpy())


@pytest.mark.parametrize("bad", [np.array(["x"] * 5), np.array([1j] * 5), np.array([None] * 5)])
def test_what_is_no_number_is_named_and_nothing_changes(bad):
    model = build("vit")
    before = vit_jax.state_dict(model)
    wrong = {name: array + 1 for name, array in before.items()} | {"head.bias": bad}
    with pytest.raises(ValueError, match=r"not numeric: head\.bias wanted real numbers"):
        vit_jax.load_state_dict(model, wrong)
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_an_array_without_elements_is_unexpected():
    model = build("vit")
    beside = {"registers": np.zeros((1, 0, 8), np.float32)}
    with pytest.raises(ValueError, match="unexpected: registers"):
        vit_jax.load_state_dict(model, {**vit_jax.state_dict(model), **beside})


def test_sharding_is_kept():
    model = build("vit")
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    kept = NamedSharding(mesh, P("data"))
    model.head.kernel.set_value(jax.device_put(model.head.kernel[...], kept))
    vit_jax.load_state_dict(model, vit_jax.state_dict(model))
    assert model.head.kernel[...].sharding == kept


def test_an_abstract_model_takes_weights_and_has_none():
    name, fields = FAMILIES["vit"]
    abstract = abstract_model(name, num_classes=5, **fields)
    with pytest.raises(ValueError, match=r"abstract.*no arrays"):
        vit_jax.state_dict(abstract)
    weights = vit_jax.state_dict(build("vit"))
    vit_jax.load_state_dict(abstract, weights)
    for name, array in vit_jax.state_dict(abstract).items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_models_built_alike_are_one_to_jit(family):
    """NNX compiles once for equal graphs."""
    name, fields = FAMILIES[family]
    fields = fields | ({} if family == "t2t dense" else {"depth": 1})
    one, other = (abstract_model(name, **fields) for _ in range(2))
    assert nnx.graphdef(one) == nnx.graphdef(other)


def test_bfloat16_parameters():
    model = build("vit", dtype=jnp.bfloat16)
    weights = vit_jax.state_dict(model)
    assert {array.dtype for array in weights.values()} == {jnp.dtype(jnp.bfloat16)}
    vit_jax.load_state_dict(model, weights)
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, weights[name])
