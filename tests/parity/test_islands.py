"""What computes partly in float32, or holds constants in it, is no fault; faults are still seen."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.parity import faults
from tests.parity.ports import TOKENS, Jax, Port, linear
from tests.tiers import mostly_slow
from tests.weights import designs
from vit_jax.inspect.recorder import recast
from vit_jax.parity import JaxFunction, OptimizerSpec, compare
from vit_jax.parity.widen import has_narrow, widening

F32 = jnp.float32
NARROW = torch.float32
IN = "computes in float32 inside: "

# ---------------------------------------------------------------------------- ports


def their_norm(x: Any, eps: float = 1e-6) -> Any:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def our_norm(x: Any, eps: float = 1e-6) -> Any:
    y = x.astype(F32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)).astype(x.dtype)


def exact_norm(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def _norms(theirs: Any = their_norm, ours: Any = our_norm, **expected: Any) -> Port:
    return Port(
        lambda self, x: self.fc(theirs(x)), lambda self, x: self.fc(ours(x)), grad=True, **expected
    )


def their_attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    q = self.fc(x).reshape(2, 6, 2, 4).transpose(1, 2)
    out = torch.nn.functional.scaled_dot_product_attention(q, 2 * q, q + 1)
    return self.out(out.transpose(1, 2).flatten(2))


def our_attention(self: Any, x: jax.Array, scale: float = 0.5) -> jax.Array:
    q = self.fc(x).reshape(2, 6, 2, 4)
    out = jax.nn.dot_product_attention(q, 2.0 * q, q + 1.0, scale=scale)
    return self.out(out.reshape(2, 6, 8))


_TWO = {"fc": linear(), "out": linear()}


def angles(xp: Any, dtype: Any) -> Any:
    frequencies = 1.0 / 10000.0 ** (xp.arange(0, 8, 2, dtype=dtype) / 8.0)
    return xp.arange(6, dtype=dtype)[:, None] * frequencies.reshape(1, -1)


class Rope(torch.nn.Module):
    """Holds its frequencies, as Hugging Face's does, in float32 whatever it runs in."""

    frequencies: torch.Tensor

    def __init__(self, factor: float = 1.0, is_buffer: bool = True):
        super().__init__()
        table = factor / 10000.0 ** (torch.arange(0, 8, 2, dtype=NARROW) / 8)
        if is_buffer:
            self.register_buffer("frequencies", table, persistent=False)
        else:
            self.frequencies = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turn = torch.outer(torch.arange(6, dtype=NARROW), self.frequencies.float())
        return x * torch.cat([turn.cos(), turn.sin()], -1).to(x.dtype)


def our_rope(dtype: Any = F32) -> Any:
    def call(self: Any, x: jax.Array) -> jax.Array:
        turn = angles(jnp, dtype)
        return x * jnp.concatenate([jnp.cos(turn), jnp.sin(turn)], -1).astype(x.dtype)[None]

    return lambda: Jax(call)


def _rope(theirs: Any, ours: Any = None, eps: float = 1e-6, **expected: Any) -> Port:
    return Port(
        lambda self, x: self.fc(self.rope(their_norm(self.fc(x)))),
        lambda self, x: self.fc(self.rope(our_norm(self.fc(x), eps))),
        {"fc": linear(), "rope": (theirs, ours or our_rope())},
        grad=True,
        **expected,
    )


def _gelu(approximate: bool, **expected: Any) -> Port:
    gelu = functools.partial(jax.nn.gelu, approximate=approximate)
    return Port(
        lambda self, x: self.out(torch.nn.functional.gelu(self.fc(x).float()).to(x.dtype)),
        lambda self, x: self.out(gelu(self.fc(x).astype(F32)).astype(x.dtype)),
        _TWO,
        grad=True,
        **expected,
    )


HELD = "rope.frequencies rounded to float32"
PORTS = {
    "a norm on both sides": _norms(note=f"each side {IN}the model itself"),
    "a norm on our side": _norms(
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        note=f"the model {IN}the model itself",
    ),
    "a norm on their side": _norms(ours=exact_norm, note=f"the reference {IN}the model itself"),
    "a norm's epsilon, off by a part in a hundred": _norms(
        ours=lambda x: our_norm(x, 1.01e-6),
        first=("forward", "before fc"),
        fault="eps",
        says="ours computes add(other=1.01e-06)",
    ),
    "attention": Port(
        their_attention,
        our_attention,
        _TWO,
        grad=True,
        note=f"the model {IN}the model itself",
        settings={"optimizer": OptimizerSpec(steps=2), "precisions": ("float64", "float32")},
    ),
    "attention's scale": Port(
        their_attention,
        functools.partial(our_attention, scale=0.5 + 1e-8),
        _TWO,
        first=("forward", "before out"),
    ),
    "an output in float32": Port(
        lambda self, x: self.fc(x),
        lambda self, x: self.fc(x).astype(F32),
        grad=True,
        note=f"the model {IN}the model itself",
    ),
    "weights in bfloat16": Port(
        lambda self, x: self.fc(self.out(x)),
        lambda self, x: self.fc(
            (x.astype(jnp.bfloat16) @ self.out.kernel[...].astype(jnp.bfloat16)).astype(x.dtype)
            + self.out.bias[...].reshape(1, 1, -1)
        ),
        _TWO,
        note="the model computes in bfloat16 inside: the model itself",
    ),
    "a loop": Port(
        lambda self, x: self.fc(torch.stack(list(x.cumsum(1).float().unbind(1)), 1).to(x.dtype)),
        lambda self, x: self.fc(
            jax.lax.scan(lambda s, y: ((s + y),) * 2, x[:, 0] * 0, x.swapaxes(0, 1))[1]
            .astype(F32)
            .swapaxes(0, 1)
            .astype(x.dtype)
        ),
        grad=True,
        note=f"each side {IN}the model itself",
    ),
    "a GELU": _gelu(False, note=f"each side {IN}the model itself"),
    "a GELU of another form": _gelu(
        True, first=("forward", "before out"), fault="gelu", says="all values and gradients agree"
    ),
    "a table that both compute": Port(
        lambda self, x: self.fc(x) * angles(torch, NARROW).repeat(1, 2).cos().to(x.dtype),
        lambda self, x: (
            self.fc(x) * jnp.cos(jnp.tile(angles(jnp, F32), (1, 2)))[None].astype(x.dtype)
        ),
        grad=True,
        note=f"each side {IN}the model itself",
    ),
    "a table in float64 here": Port(
        lambda self, x: self.fc(x) * angles(torch, NARROW).repeat(1, 2).cos().to(x.dtype),
        lambda self, x: self.fc(x) * jnp.cos(jnp.tile(angles(jnp, jnp.float64), (1, 2)))[None],
        grad=True,
        note=f"the reference {IN}the model itself",
    ),
    "a table that they hold": _rope(Rope, note=HELD),
    "a table that they hold, here in float64": _rope(Rope, our_rope(jnp.float64), note=HELD),
    "a table that is no buffer": _rope(
        functools.partial(Rope, is_buffer=False), note="a constant of rope rounded to float32"
    ),
    "a table that they hold, and an epsilon": _rope(
        Rope,
        eps=1.01e-6,
        first=("forward", "before rope"),
        fault="eps",
        says="ours computes add(other=1.01e-06)",
        complete=False,
        note=HELD,
    ),
    "another table": _rope(functools.partial(Rope, 1 + 1e-5), first=("forward", "rope")),
    "a constant here": Port(
        lambda self, x: self.fc(x) * 0.1,
        lambda self, x: self.fc(x) * jnp.asarray(0.1, F32).astype(x.dtype),
        grad=True,
        note="the model holds a constant of the model itself rounded to float32",
    ),
    "a constant there": Port(
        lambda self, x: self.fc(x) * torch.tensor(0.1),
        lambda self, x: self.fc(x) * 0.1,
        grad=True,
    ),
    "a constant that is another": Port(
        lambda self, x: self.fc(x) * 0.1,
        lambda self, x: self.fc(x) * jnp.asarray(0.10001, F32).astype(x.dtype),
        first=("forward", ""),
    ),
}
FAST = [
    "a norm on both sides",
    "a norm's epsilon, off by a part in a hundred",
    "attention",
    "weights in bfloat16",
    "a GELU of another form",
    "a table in float64 here",
    "a table that is no buffer",
    "a table that they hold, and an epsilon",
    "another table",
    "a constant here",
    "a constant there",
]


@pytest.mark.parametrize("name", mostly_slow(PORTS, FAST))
def test_parts_in_float32(name: str, promoting: None) -> None:
    PORTS[name].check()


def test_pytorchs_attention_and_flax(promoting: None) -> None:
    """Its arrays have other names and shapes: outputs are compared."""
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    class Self(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = reference

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x, x)[0]

    ours = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    arrays = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    for i, part in enumerate((ours.query, ours.key, ours.value)):
        part.kernel[...] = jnp.asarray(
            arrays["in_proj_weight"][8 * i : 8 * i + 8].T.reshape(8, 2, 4)
        )
        part.bias[...] = jnp.asarray(arrays["in_proj_bias"][8 * i : 8 * i + 8].reshape(2, 4))
    ours.out.kernel[...] = jnp.asarray(arrays["out_proj.weight"].T.reshape(2, 4, 8))
    ours.out.bias[...] = jnp.asarray(arrays["out_proj.bias"])
    report = compare(Jax(lambda self, x: self.attn(x), attn=ours), Self(), TOKENS, grad=False)
    assert report.ok, report.first
    assert any(f"the model {IN}attn" in note for note in report.notes), report.notes


def test_a_function() -> None:
    port = PORTS["a norm on our side"]
    _, reference = port.make()
    params = {name: array.numpy() for name, array in reference.state_dict().items()}

    def apply(params: Any, x: jax.Array, eps: float = 1e-6) -> jax.Array:
        return our_norm(x, eps) @ params["fc.weight"].T + params["fc.bias"].reshape(1, 1, -1)

    report = port.compare(JaxFunction(apply, params), reference)
    assert report.ok, report.first
    assert any(IN in note for note in report.notes)
    wrong = JaxFunction(functools.partial(apply, eps=1.01e-6), params)
    assert not port.compare(wrong, reference).ok


# ---------------------------------------------------------------------------- no replay


def test_what_cannot_be_widened() -> None:
    """A side that insists on its float32 is judged as float32, and a note says so."""

    def theirs(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        if y.dtype != NARROW:
            raise TypeError("wanted float32")
        return self.fc((3 * y).to(x.dtype))

    def ours(self: Any, x: jax.Array) -> jax.Array:
        y = x.astype(F32)
        if y.dtype != F32:
            raise TypeError("wanted float32")
        return self.fc((3.0 * y).astype(x.dtype))

    for pair, whose in (
        ((theirs, lambda self, x: self.fc(3.0 * x)), "the reference"),
        ((lambda self, x: self.fc(3 * x), ours), "the model"),
    ):
        report = Port(*pair, grad=True).check()
        wanted = f"{whose} computes partly in float32 and could not be run in float64 throughout"
        assert any(wanted in note and "wanted float32" in note for note in report.notes)
    wrong = Port(theirs, lambda self, x: self.fc(3.001 * x), first=("forward", "before fc"))
    wrong.check()


class Strict(torch.nn.Module):
    """Runs in float32 alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != NARROW:
            raise RuntimeError("expected scalar type Float but found Double")
        return x


def _strict(eps: float, **expected: Any) -> Port:
    norm = lambda: torch.nn.LayerNorm(8), lambda: nnx.LayerNorm(8, epsilon=eps, rngs=nnx.Rngs(0))
    return Port(
        lambda self, x: self.fc(self.norm(self.strict(x))),
        lambda self, x: self.fc(self.norm(self.strict(x))),
        {"fc": linear(), "norm": norm, "strict": (Strict, lambda: Jax(lambda self, x: x))},
        grad=True,
        note="the reference runs in float32 alone (RuntimeError: expected scalar type Float",
        **expected,
    )


def test_a_reference_of_float32_alone(promoting: None) -> None:
    alone = {"precisions": ("float32",)}
    _strict(1e-5, settings=alone).check()
    fault = "epsilon 1e-06, the reference's LayerNorm with epsilon 1e-05"
    _strict(
        1e-6, settings=alone, first=("forward", "norm"), fault="layer_norm_eps", says=fault
    ).check()
    with pytest.raises(ValueError, match="runs in float32 and not in float64"):
        _strict(1e-5).check()


def test_faults_are_explained_in_float32_alone(promoting: None) -> None:
    port = dataclasses.replace(
        PORTS["a GELU of another form"], settings={"precisions": ("float32",)}
    )
    report = port.check()
    assert {row.precision for row in report.rows} == {"float32"}


# ---------------------------------------------------------------------------- our own models


def test_a_norm_in_float32_of_our_own(monkeypatch: pytest.MonkeyPatch, promoting: None) -> None:
    models = faults.pair("vit")
    call = nnx.LayerNorm.__call__
    monkeypatch.setattr(
        nnx.LayerNorm, "__call__", lambda self, x: call(self, x.astype("float32")).astype(x.dtype)
    )
    report = compare(models.model, models.reference, grad=False, precisions=("float64",))
    assert report.ok, report.first
    assert any(f"the model {IN}blocks.0.norm1, blocks.0.norm2" in note for note in report.notes)
    assert narrow_parts(models.model)


def narrow_parts(model: Any) -> bool:
    with jax.enable_x64(True):
        wide = recast(model, jnp.float64)
        images = jax.ShapeDtypeStruct((2, *model.img_size, model.in_chans), jnp.float64)
        return has_narrow(jax.make_jaxpr(lambda images: wide(images))(images))


@pytest.mark.parametrize("design", designs.ALL)
def test_our_models_compute_in_float64_throughout(design: str) -> None:
    model = designs.make(design)
    model.eval()
    assert not narrow_parts(model)


# ---------------------------------------------------------------------------- the transformation

_X = np.random.default_rng(0).normal(size=(2, 5, 4, 8))


def _loop(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, y: 0.9 * y + jnp.sin(y), x)


FUNCTIONS = {
    "constants": lambda x: x * 0.1 + 1 / 3,
    "gelu": jax.nn.gelu,
    "a choice": lambda x: jnp.where(x > 0, x, 0.1),
    "compiled": jax.jit(lambda x: x * 0.1),
    "custom jvp": jax.nn.silu,
    "softmax": jax.nn.softmax,
    "a loop": _loop,
    "a scan": lambda x: jax.lax.scan(lambda s, y: (0.9 * s + y, 0.1 * s), x[0] * 0.0, x)[1],
    "a branch": lambda x: jax.lax.cond(x.sum() > 0, lambda y: 0.3 * y, lambda y: 0.7 * y, x),
    "every row": jax.vmap(lambda x: jnp.sin(x) * 0.3),
    "rematerialised": jax.checkpoint(lambda x: jnp.sin(x) * 0.5),
    "made up on the way": lambda x: x * jnp.arange(8, dtype=x.dtype) / 3,
    "a resize": lambda x: jax.image.resize(x, (2, 7, 9, 8), "bicubic"),
    "a transform": lambda x: jnp.abs(jnp.fft.fft(x)),
    "a system": lambda x: jnp.linalg.solve(
        x[0, 0].T @ x[0, 0] + 3 * jnp.eye(8, dtype=x.dtype), x[1, 0].T
    ),
    "fewer bits": lambda x: jax.lax.reduce_precision(x, 8, 7),
    "scattered": lambda x: jnp.zeros_like(x).at[:, jnp.array([0, 0, 1, 2, 3])].add(x),
}
SOON = ["constants", "compiled", "custom jvp", "a loop", "a branch", "a system", "fewer bits"]


@pytest.mark.parametrize("name", mostly_slow(FUNCTIONS, SOON))
@pytest.mark.parametrize("compiled", [False, True])
def test_widening(name: str, compiled: bool, promoting: None) -> None:
    function = FUNCTIONS[name]

    def loss(run: Any, x: jax.Array) -> jax.Array:
        y = run(x).astype(jnp.float64)
        return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float64)).reshape(y.shape)).sum()

    found: list[str] = []

    def wide(x: jax.Array) -> jax.Array:
        with widening(found.append):
            return function(x.astype(F32))

    exact = (lambda x: x) if name == "fewer bits" else function
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        x = jnp.asarray(_X)
        want = jax.value_and_grad(functools.partial(loss, exact))(x)
        differentiate = jax.value_and_grad(functools.partial(loss, wide))
        got = (jax.jit(differentiate) if compiled else differentiate)(x)
        for one, other in zip(got, want, strict=True):
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
        assert set(found) <= {"float32", "fewer bits"}
        assert found
        narrow = jax.make_jaxpr(lambda x: function(x.astype(F32)))(x)
        assert has_narrow(narrow)
        assert not has_narrow(jax.make_jaxpr(wide)(x))


def test_constants_where_casts_are_compiled() -> None:
    """Compiled, a constant would have been rounded before it is seen."""
    with jax.enable_x64(True), widening(lambda _: None):
        got = jax.jit(lambda x: x.astype(F32) * 0.1)(jnp.asarray(_X))
    np.testing.assert_array_equal(got, _X * 0.1)
