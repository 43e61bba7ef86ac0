"""Arrays of a right port that lie otherwise than PyTorch's, or have Hugging Face's names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.ports import TOKENS
from vit_jax.parity import JaxFunction, OptimizerSpec, compare, from_equinox

F64 = ("float64",)


class WithToken(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.cat([self.token.expand(len(x), -1, -1), x], 1))


@pytest.mark.parametrize("shape", [(8,), (1, 8)])
def test_a_port_of_single_examples_has_no_axis_of_the_batch(shape: tuple[int, ...]) -> None:
    eqx: Any = pytest.importorskip("equinox")

    class Port(eqx.Module):
        token: jax.Array
        fc: Any

        def __call__(self, x):  # (N, D)
            return jax.vmap(self.fc)(jnp.concatenate([self.token.reshape(1, 8), x]))

    reference = WithToken()
    port = Port(jnp.zeros(shape), eqx.nn.Linear(8, 4, key=jax.random.key(0)))
    model = from_equinox(port).load(reference.state_dict())
    report = compare(model, reference, TOKENS, precisions=F64)
    assert report.ok, report.first
    assert {"token"} < {row.name for row in report.rows if row.section == "gradients"}
    with torch.no_grad():
        reference.token[0, 0, 1] += 1e-6
    report = compare(model, reference, TOKENS, precisions=F64)
    assert report.first is not None
    assert (report.first.section, report.first.name) == ("weights", "token")


class WithFacesNames(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layernorm, self.embeddings = torch.nn.LayerNorm(8), torch.nn.Module()
        self.embeddings.patch_embeddings = torch.nn.Module()
        self.embeddings.patch_embeddings.projection = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        projection = self.get_submodule("embeddings.patch_embeddings.projection")
        return projection(self.layernorm(x))


def test_a_port_with_hugging_faces_names_keeps_them() -> None:
    """Its arrays are compared, where they were put in timm's names and met none."""
    reference = WithFacesNames()
    params = {name: value.numpy() for name, value in reference.state_dict().items()}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        known = {n: a if a.ndim == 2 else a.reshape(1, 1, -1) for n, a in params.items()}
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        x = x * known["layernorm.weight"] + known["layernorm.bias"]
        name = "embeddings.patch_embeddings.projection"
        return x @ known[f"{name}.weight"].T + known[f"{name}.bias"]

    report = compare(JaxFunction(apply, params), reference, TOKENS, precisions=F64)
    assert report.ok, report.first
    compared = {row.name for row in report.rows if row.section == "gradients"}
    assert compared == params.keys()
    assert not any("alone has" in note for note in report.notes), report.notes


@pytest.mark.parametrize("out", [8, 5])
def test_conv1d_of_transformers(out: int) -> None:
    """Its weight is (in, out), a Linear's (out, in): where both are equal so, that is no fault."""
    pytorch_utils: Any = pytest.importorskip("transformers.pytorch_utils")

    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc = pytorch_utils.Conv1D(out, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.c_fc(x))

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.c_fc = nnx.Linear(8, out, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.tanh(self.c_fc(x))

    reference, model = Torch(), Port()
    torch.nn.init.normal_(reference.c_fc.bias)
    arrays = reference.state_dict()
    vit_jax.load_state_dict(model, {**arrays, "c_fc.weight": arrays["c_fc.weight"].T})
    report = compare(model, reference, TOKENS, precisions=F64, optimizer=OptimizerSpec(steps=2))
    assert report.ok, report.first
    assert "c_fc.weight" in {row.name for row in report.rows if row.section == "trained"}
    assert "c_fc.weight" in {row.name for row in report.rows if row.section == "gradients"}
    if out == 8:  # the array as it is, which no Linear computes with
        vit_jax.load_state_dict(model, arrays)
        report = compare(model, reference, TOKENS, precisions=F64)
        assert report.first is not None
        assert (report.first.section, report.stage) == ("forward", "c_fc"), report
        assert report.diagnosis is not None
    np.testing.assert_array_equal(arrays["c_fc.weight"], reference.state_dict()["c_fc.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("out", [8, 5])
def test_conv1d_beside_a_table_held_in_float32(out: int) -> None:
    """What the table's last digit moves is measured in the layout that is compared."""
    pytorch_utils: Any = pytest.importorskip("transformers.pytorch_utils")

    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = 1e4 ** (-torch.arange(8, dtype=torch.float32) / 8)
            self.register_buffer("table", table, persistent=False)
            self.c_fc = pytorch_utils.Conv1D(out, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.c_fc(x * self.get_buffer("table").to(x.dtype)))

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.c_fc = nnx.Linear(8, out, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            table = jnp.asarray(1e4, x.dtype) ** (-jnp.arange(8, dtype=x.dtype) / 8.0)
            return jnp.tanh(self.c_fc(x * table[None, None]))

    reference, model = Torch(), Port()
    torch.nn.init.normal_(reference.c_fc.weight)
    arrays = reference.state_dict()
    vit_jax.load_state_dict(model, {**arrays, "c_fc.weight": arrays["c_fc.weight"].T})
    report = compare(model, reference, TOKENS, precisions=F64)
    assert report.ok, report.first
    assert any("the reference holds table rounded to float32" in note for note in report.notes)
    (row,) = (r for r in report.rows if (r.section, r.name) == ("gradients", "c_fc.weight"))
    assert row.relative > 0
    assert row.limit < 1e-5 * row.max_abs / row.relative
