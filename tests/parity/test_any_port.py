"""Ports that are no NNX modules: Linen's and Equinox's; several inputs; losses of one's own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import vit_jax
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from vit_jax.parity import (
    JaxFunction,
    OptimizerSpec,
    Untouched,
    assert_parity,
    compare,
    from_equinox,
    from_linen,
)

eqx = pytest.importorskip("equinox")
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
F64 = ("float64",)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = torch.nn.Linear(8, 12), torch.nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.bn = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.BatchNorm2d(8)
        self.blocks = torch.nn.ModuleList([Block()])
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.patches(x)).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@functools.cache
def reference() -> torch.nn.Module:
    module = redrawn(Net())
    with torch.no_grad():
        module.bn.running_mean.normal_()
        module.bn.running_var.uniform_(0.5, 2)
    return module


class LinenBlock(linen.Module):
    tanh: bool

    @linen.compact
    def __call__(self, x):
        y = linen.LayerNorm(epsilon=1e-5, name="norm")(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, name="attn")(y, y)
        y = linen.gelu(linen.Dense(12, name="fc1")(x), approximate=self.tanh)
        return x + linen.Dense(8, name="fc2")(y)


class LinenNet(linen.Module):
    tanh: bool = False
    bn_eps: float = 1e-5
    dtype: Any = None

    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.Conv(8, (4, 4), (4, 4), padding="VALID", dtype=self.dtype, name="patches")(x)
        x = linen.BatchNorm(not train, epsilon=self.bn_eps, dtype=self.dtype, name="bn")(x)
        x = linen.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1, 8))
        x = LinenBlock(self.tanh, name="blocks_0")(x)
        return linen.Dense(5, name="head")(x.mean(1))


def linen_net(**fields: Any) -> nnx.Module:
    net = LinenNet(**fields)
    variables = net.init(jax.random.key(0), jnp.asarray(IMAGES, jnp.float32), train=False)
    return from_linen(net, variables, train=False).load(reference().state_dict())


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    tanh: bool

    def __init__(self, tanh: bool, key: jax.Array):
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.norm = eqx.nn.LayerNorm(8)
        self.attn = eqx.nn.MultiheadAttention(2, 8, **biases, key=key)
        self.fc1, self.fc2 = eqx.nn.Linear(8, 12, key=key), eqx.nn.Linear(12, 8, key=key)
        self.tanh = tanh

    def __call__(self, x):
        y = jax.vmap(self.norm)(x)
        x = x + self.attn(y, y, y)
        y = jax.nn.gelu(jax.vmap(self.fc1)(x), approximate=self.tanh)
        return x + jax.vmap(self.fc2)(y)


class EquinoxNet(eqx.Module):
    patches: eqx.nn.Conv2d
    bn: eqx.nn.BatchNorm
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, tanh: bool = False, bn_eps: float = 1e-5, mode: str = "ema"):
        key = jax.random.key(0)
        self.patches = eqx.nn.Conv2d(3, 8, 4, 4, key=key)
        self.bn = eqx.nn.BatchNorm(8, "batch", eps=bn_eps, mode=mode, inference=True)
        self.blocks = [EquinoxBlock(tanh, key)]
        self.head = eqx.nn.Linear(8, 5, key=key)

    def __call__(self, x, state):
        x, state = self.bn(self.patches(x), state)
        x = x.reshape(8, -1).T
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0)), state


def equinox_net(**fields: Any) -> nnx.Module:
    net, state = eqx.nn.make_with_state(EquinoxNet)(**fields)
    return from_equinox(net, state=state).load(reference().state_dict())


LIBRARIES: dict[str, Callable[..., nnx.Module]] = {"linen": linen_net, "equinox": equinox_net}


@pytest.mark.parametrize("library", mostly_slow(LIBRARIES, ["equinox"]))
def test_a_port_agrees_in_all(library: str) -> None:
    model = LIBRARIES[library]()
    report = assert_parity(
        model, reference(), IMAGES, optimizer=OptimizerSpec(steps=1), precisions=F64
    )
    assert report.notes == ()
    assert report.model == type(model.held.value[0]).__name__
    weights = {n for n, _ in reference().named_parameters()}
    for section in ("gradients", "trained"):
        assert {row.name for row in report.rows if row.section == section} == weights
    stages = {row.name for row in report.rows if row.section == "forward"}
    wanted = {"patches", "bn", "blocks.0.norm", "blocks.0.attn", "blocks.0.fc1", "blocks.0", "head"}
    assert wanted <= stages
    assert {f"before {name}" for name in wanted} <= stages
    assert vit_jax.state_dict(model).keys() == {
        name for name in reference().state_dict() if not name.endswith("tracked")
    }


@pytest.mark.parametrize(
    ("library", "fields", "stage", "fault"),
    [
        pytest.param("linen", {"tanh": True}, "blocks.0", "gelu", marks=pytest.mark.slow),
        ("equinox", {"tanh": True}, "blocks.0", "gelu"),
        ("linen", {"bn_eps": 1e-3}, "bn", None),
        pytest.param(
            "equinox", {"bn_eps": 1e-3, "mode": "batch"}, "bn", None, marks=pytest.mark.slow
        ),
    ],
)
def test_a_fault_is_placed(library: str, fields: Any, stage: str, fault: str | None) -> None:
    model = LIBRARIES[library](**fields)
    report = compare(model, reference(), IMAGES, grad=False, precisions=F64)
    assert report.stage == stage
    if fault is not None:
        assert report.diagnosis is not None
        assert report.diagnosis.fault == fault


def test_linens_own_dtype_follows_the_precision() -> None:
    """`dtype=float32` of a module is what it runs in elsewhere, not in a comparison in float64."""
    assert_parity(linen_net(dtype=jnp.float32), reference(), IMAGES, grad=False, precisions=F64)


@pytest.mark.slow
def test_the_module_itself_stays_as_it_is() -> None:
    net, state = eqx.nn.make_with_state(EquinoxNet)()
    model = from_equinox(net, state=state)
    before = jax.tree.leaves(eqx.filter(net, eqx.is_array))
    loaded = model.load(reference().state_dict())
    first = IMAGES.transpose(0, 3, 1, 2).astype(np.float32)  # as Equinox has them
    theirs = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(model(jnp.asarray(first)), theirs(first, state)[0], atol=1e-6)
        assert np.max(np.abs(model(jnp.asarray(first)) - loaded(jnp.asarray(first)))) > 1e-3
    after = jax.tree.leaves(eqx.filter(net, eqx.is_array))
    assert all(one is other for one, other in zip(before, after, strict=True))


# ------------------------------------------------------------------- kinds of modules


class Kinds(linen.Module):
    @linen.compact
    def __call__(self, ids):
        x = linen.Embed(7, 6, name="wte")(ids)  # (B, N, 6)
        x = linen.DenseGeneral((2, 4), name="fc")(x)
        x = linen.DenseGeneral(6, axis=(-2, -1), name="out")(x)
        x = linen.ConvTranspose(5, (3,), (2,), padding="VALID", name="up")(x)
        return linen.RMSNorm(epsilon=1e-5, name="norm")(x)


class TorchKinds(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.fc = torch.nn.Embedding(7, 6), torch.nn.Linear(6, 8)
        self.out, self.up = torch.nn.Linear(8, 6), torch.nn.ConvTranspose1d(6, 5, 3, 2)
        self.norm = torch.nn.RMSNorm(5, eps=1e-5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.up(self.out(self.fc(self.wte(ids))).mT).mT)


IDS = np.random.default_rng(0).integers(0, 7, (2, 5))


def test_kinds_of_linen() -> None:
    module, net = redrawn(TorchKinds()), Kinds()
    variables = net.init(jax.random.key(0), IDS)
    model = from_linen(net, variables, example=(IDS,)).load(module.state_dict())
    assert_parity(model, module, IDS, precisions=F64)
    blind = from_linen(net, variables)
    with pytest.raises(
        ValueError, match=r"out is a linen\.DenseGeneral.*give from_linen `example="
    ):
        blind(IDS)


class EquinoxKinds(eqx.Module):
    wte: eqx.nn.Embedding
    up: eqx.nn.ConvTranspose1d
    norm: eqx.nn.GroupNorm
    act: eqx.nn.PReLU
    mlp: eqx.nn.Sequential

    def __init__(self):
        key = jax.random.key(0)
        self.wte = eqx.nn.Embedding(7, 6, key=key)
        self.up = eqx.nn.ConvTranspose1d(6, 4, 3, 2, groups=2, key=key)
        self.norm = eqx.nn.GroupNorm(2, 4)
        self.act = eqx.nn.PReLU(0.3)
        layers = [
            eqx.nn.Linear(4, 3, key=key),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Linear(3, 2, key=key),
        ]
        self.mlp = eqx.nn.Sequential(layers)

    def __call__(self, ids):
        x = jax.vmap(self.wte)(ids).T  # (6, N)
        x = self.act(self.norm(self.up(x)))
        return jax.vmap(self.mlp, in_axes=1, out_axes=1)(x)


class TorchEquinoxKinds(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(7, 6)
        self.up = torch.nn.ConvTranspose1d(6, 4, 3, 2, groups=2)
        self.norm, self.act = torch.nn.GroupNorm(2, 4), torch.nn.PReLU()
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.up(self.wte(ids).mT)))
        return self.mlp(x.mT).mT


def test_kinds_of_equinox() -> None:
    """Groups of a transposed convolution, a map over another axis, a Sequential's layers."""
    module = redrawn(TorchEquinoxKinds())
    model = from_equinox(EquinoxKinds()).load(module.state_dict())
    report = assert_parity(model, module, IDS, precisions=F64)
    assert {"mlp", "mlp.1", "mlp.2", "act"} <= {row.name for row in report.rows}


def test_loading_leaves_the_port_as_it_is() -> None:
    model = from_equinox(EquinoxKinds())
    before = vit_jax.state_dict(model)
    loaded = vit_jax.state_dict(model.load(redrawn(TorchEquinoxKinds()).state_dict()))
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])
        assert not np.array_equal(array, loaded[name])


# ------------------------------------------------------------------------- several inputs


class Several(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)

    def forward(self, images, bias, mask=None, ids=None, double=False):
        x = self.fc(images.mean((2, 3))) + bias.mean((1, 2, 3))[:, None]
        x = x if mask is None else x.masked_fill(mask, 0.0)
        x = x if ids is None else x * ids
        return x * 2 if double else x


class OurSeveral(nnx.Module):
    def __init__(self, factor: float = 1.0):
        self.fc = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.factor = factor

    def __call__(self, images, bias, mask=None, ids=None, double=False):
        x = self.fc(images.mean((1, 2))) + self.factor * bias.mean((1, 2, 3))[:, None]
        x = x if mask is None else jnp.where(mask, 0.0, x)
        x = x if ids is None else x * ids.astype(x.dtype)
        return x * 2 if double else x


def several(factor: float = 1.0) -> tuple[nnx.Module, torch.nn.Module]:
    module, model = Several(), OurSeveral(factor)
    vit_jax.load_state_dict(model, module.state_dict())
    return model, module


BIAS = np.random.default_rng(1).normal(size=(2, 3, 4, 5))
MORE = {"mask": np.array([[True, False, False]] * 2), "ids": np.array([[1, 2, 3]] * 2)}


@pytest.mark.parametrize(
    "inputs",
    [
        (IMAGES, Untouched(BIAS)),
        (IMAGES, Untouched(BIAS), {**MORE, "double": True}),
        {"images": IMAGES, "bias": Untouched(BIAS), **MORE},
    ],
    ids=["by position", "and by keyword", "by keyword"],
)
def test_several_inputs(inputs: Any) -> None:
    model, module = several()
    report = assert_parity(model, module, inputs, precisions=F64)
    names = ("images", "bias") if isinstance(inputs, dict) else ("0", "1")
    backward = {row.name for row in report.rows if row.section == "backward"}
    assert {f"input {name}" for name in names} <= backward
    assert not compare(several(2.0)[0], module, inputs, precisions=F64).ok


def test_a_gradient_of_one_input_is_told() -> None:
    module = Several()

    def apply(params, images, bias):
        x = images.mean((1, 2)) @ params["fc.weight"].T + params["fc.bias"][None]
        return x + jax.lax.stop_gradient(bias).mean((1, 2, 3))[:, None]

    params = {name: value.numpy() for name, value in module.state_dict().items()}
    function, inputs = JaxFunction(apply, params), (IMAGES, Untouched(BIAS))
    report = compare(function, module, inputs, loss=losses(), precisions=F64)
    wrong = {row.name for row in report.rows if row.verdict != "noise"}
    assert wrong == {"input 1"}


@pytest.mark.parametrize("inputs", [(), {"images": None}, (np.array(["x"]),), (np.zeros((0, 3)),)])
def test_inputs_that_are_none(inputs: Any) -> None:
    model, module = several()
    with pytest.raises(ValueError, match=r"input"):
        compare(model, module, inputs)
    with pytest.raises(ValueError, match=r"another name of inputs"):
        compare(model, module, IMAGES, images=IMAGES)


# ------------------------------------------------------------------- a loss of one's own


def losses(factor: float = 1.0) -> tuple[Any, Any]:
    weights = np.array([[1.0, 0.0, 2.0]])
    return (
        lambda output: factor * (jnp.asarray(weights, output.dtype) * output**2).mean(),
        lambda output: (torch.from_numpy(weights).to(output.dtype) * output**2).mean(),
    )


def test_a_loss_of_ones_own() -> None:
    model, module = several()
    inputs = (IMAGES, Untouched(BIAS))
    spec = OptimizerSpec(steps=2)
    assert_parity(model, module, inputs, loss=losses(), optimizer=spec, precisions=F64)
    report = compare(model, module, inputs, loss=losses(2.0), precisions=F64)
    assert report.stage == "loss"
    with pytest.raises(ValueError, match=r"labels: a loss of your own"):
        compare(model, module, inputs, loss=losses(), labels=[0, 1])


# ------------------------------------------------------------- names of attributes and of stages


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class OurAttention(nnx.Module):
    """Of two heads, whatever they are called; with the wrong scale, or a softmax over the heads."""

    def __init__(self, scale: float = 8**-0.5, axis: int = -1, **said: int):
        self.scale, self.axis = scale, axis
        self.qkv = nnx.Linear(8, 24, rngs=nnx.Rngs(0))
        self.proj = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        for name, value in said.items():
            setattr(self, name, value)

    def __call__(self, x):
        parts = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4)
        q, k, v = (part.swapaxes(1, 2) for part in jnp.unstack(parts, axis=2))
        weights = jax.nn.softmax(q @ k.swapaxes(2, 3) * self.scale, axis=self.axis)
        return self.proj((weights @ v).swapaxes(1, 2).reshape(x.shape))


TOKENS = np.random.default_rng(0).normal(size=(2, 5, 8))


@pytest.mark.parametrize(
    "said", mostly_slow([{"num_heads": 2}, {"n_head": 2}, {}], [{"n_head": 2}]), ids=str
)
def test_a_fault_of_an_attention_is_named_whatever_its_attributes(said: Any) -> None:
    module, model = redrawn(Attention()), OurAttention(**said)
    vit_jax.load_state_dict(model, module.state_dict())
    report = compare(model, module, TOKENS, precisions=F64)
    assert report.diagnosis is not None
    assert (report.stage, report.diagnosis.fault) == ("", "attention_scale")


@pytest.mark.parametrize("said", mostly_slow([{"num_heads": 2}, {}], [{"num_heads": 2}]), ids=str)
def test_what_an_attention_computes_is_said_and_not_only_what_it_does_not(said: Any) -> None:
    """The known form of the reference's agrees, but what ours is only the replay can tell."""
    module, model = redrawn(Attention()), OurAttention(scale=0.5, axis=1, **said)
    vit_jax.load_state_dict(model, module.state_dict())
    report = compare(model, module, TOKENS, precisions=F64)
    assert report.diagnosis is not None
    assert (report.diagnosis.fault, report.diagnosis.complete) == ("softmax_axis", True)
    assert "in the model itself ours computes softmax(dim=1) where" in report.diagnosis.text


class Calls(torch.nn.Module):
    """Of modules without arrays of their own two have one name."""

    def __init__(self, second: torch.nn.Module) -> None:
        super().__init__()
        self.fc, self.act1, self.act2 = torch.nn.Linear(8, 8), torch.nn.Tanh(), second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act2(self.fc(self.act1(x)))


class Act(nnx.Module):
    def __call__(self, x):
        return jnp.tanh(x)


class OurCalls(nnx.Module):
    def __init__(self, again: bool = True):
        self.fc, self.act, self.again = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), Act(), again

    def __call__(self, x):
        x = self.fc(self.act(x))
        return self.act(x) if self.again else jnp.tanh(x)


def test_two_modules_of_one_name_are_compared_in_order() -> None:
    names = ((r"^act\d", "act"),)
    module, model = Calls(torch.nn.Tanh()), OurCalls()
    vit_jax.load_state_dict(model, module.state_dict())
    report = assert_parity(model, module, TOKENS, names=names, precisions=F64)
    stages = {row.name for row in report.rows if row.section == "forward"}
    backward = {row.name for row in report.rows if row.section == "backward"}
    assert {"act", "act#1"} <= stages & backward
    other = Calls(torch.nn.Sigmoid())
    other.load_state_dict(module.state_dict())
    assert compare(model, other, TOKENS, names=names, precisions=F64).stage == "act#1"
    once = OurCalls(again=False)
    vit_jax.load_state_dict(once, module.state_dict())
    with pytest.raises(ValueError, match=r"less often: act2 is act too"):
        compare(once, module, TOKENS, names=names, precisions=F64)


# -------------------------------------------------------------------------------- tied heads


class TorchTied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.fc = torch.nn.Embedding(7, 6), torch.nn.Linear(6, 6)
        self.lm_head = torch.nn.Linear(6, 7, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.tanh(self.fc(self.wte(ids))))


class OurTied(nnx.Module):
    """The head's name comes before the embedding's, and PyTorch's gradient has the latter's."""

    def __init__(self, shared: bool):
        self.wte, self.fc = (
            nnx.Embed(7, 6, rngs=nnx.Rngs(0)),
            nnx.Linear(6, 6, rngs=nnx.Rngs(0)),
        )
        if shared:
            self.lm_head = nnx.Dict(weight=self.wte.embedding)

    def __call__(self, ids):
        return self.wte.attend(jnp.tanh(self.fc(self.wte(ids))))


@pytest.mark.parametrize("shared", [False, True])
def test_a_tied_embedding(shared: bool) -> None:
    module, model = redrawn(TorchTied()), OurTied(shared)
    vit_jax.load_state_dict(model, module.state_dict())
    spec = OptimizerSpec(steps=1)
    report = assert_parity(model, module, IDS, optimizer=spec, precisions=F64)
    for section in ("gradients", "trained"):
        names = {row.name for row in report.rows if row.section == section}
        assert names == {"wte.weight", "fc.weight", "fc.bias"}
    weights = {row.name for row in report.rows if row.section == "weights"}
    assert ("lm_head.weight" in weights) == shared
