"""Every kind of module that PyTorch has too: loaded, equal in its output, and back, strictly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from vit_jax.weights.state_dict import names_by_path

RNGS = nnx.Rngs(0)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A module of either kind, the shape of an input (channels last), and whether it is a map."""

    ours: Callable[[], Any]
    theirs: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    call: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] = lambda module, x: module(x)


class Port(nnx.Module):
    """A module with parts; called through the first."""

    def __init__(self, call: Callable[[Any, jax.Array], jax.Array], **parts: Any):
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = call

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call(self, x)


def attention(**fields: Any) -> Port:
    made = nnx.MultiHeadAttention(
        4,
        8,
        decode=False,
        deterministic=True,
        bias_init=nnx.initializers.normal(),
        rngs=RNGS,
        **fields,
    )
    return Port(lambda m, x: m.attn(x), attn=made)


class Separate(torch.nn.Module):
    """query, key, value and out as Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.Module()
        for name in ("query", "key", "value", "out"):
            setattr(self.attn, name, torch.nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (self.attn.query, self.attn.key, self.attn.value)
        q, k, v = (part(x).unflatten(-1, (4, 2)).transpose(1, 2) for part in parts)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.attn.out(y.transpose(1, 2).flatten(2))


def joined(bias: bool = True) -> torch.nn.Module:
    return torch.nn.ModuleDict(
        {"attn": torch.nn.MultiheadAttention(8, 4, bias=bias, batch_first=True)}
    )


def named(**names: str) -> Callable[[], Port]:
    """An attention whose parts PyTorch calls otherwise."""

    def make() -> Port:
        port = attention()
        port.torch_names = tuple((rf"\.{old}\.", f".{new}.") for old, new in names.items())
        return port

    return make


class Renamed(Separate):
    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "value", "out"):
            self.attn.add_module(f"{name[0]}_proj", getattr(self.attn, name))
            delattr(self.attn, name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        names = ("query", "key", "value", "out")
        other = Separate()
        other.attn = torch.nn.ModuleDict({n: getattr(self.attn, f"{n[0]}_proj") for n in names})
        return other(x)


def turned(port: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(port, name, value)
    return port


KINDS: dict[str, Kind] = {
    "BatchNorm1d": Kind(
        lambda: nnx.BatchNorm(6, use_running_average=True, epsilon=1e-5, rngs=RNGS),
        lambda: torch.nn.BatchNorm1d(6),
        (5, 6),
    ),
    "BatchNorm2d": Kind(
        lambda: nnx.BatchNorm(6, use_running_average=True, epsilon=1e-5, rngs=RNGS),
        lambda: torch.nn.BatchNorm2d(6),
        (2, 4, 4, 6),
    ),
    "GroupNorm": Kind(
        lambda: nnx.GroupNorm(6, 3, epsilon=1e-5, rngs=RNGS),
        lambda: torch.nn.GroupNorm(3, 6),
        (2, 4, 4, 6),
    ),
    "RMSNorm": Kind(
        lambda: nnx.RMSNorm(6, epsilon=1e-5, rngs=RNGS),
        lambda: torch.nn.RMSNorm(6, eps=1e-5),
        (5, 6),
    ),
    "PReLU": Kind(lambda: nnx.PReLU(), lambda: torch.nn.PReLU(), (5, 6)),
    "Conv, depthwise": Kind(
        lambda: nnx.Conv(6, 6, (3, 3), padding=1, feature_group_count=6, rngs=RNGS),
        lambda: torch.nn.Conv2d(6, 6, 3, padding=1, groups=6),
        (2, 5, 5, 6),
    ),
    "Conv1d": Kind(
        lambda: nnx.Conv(6, 4, 3, padding="VALID", rngs=RNGS),
        lambda: torch.nn.Conv1d(6, 4, 3),
        (2, 7, 6),
    ),
    "ConvTranspose2d": Kind(
        lambda: nnx.ConvTranspose(6, 4, (3, 2), (2, 2), padding="VALID", rngs=RNGS),
        lambda: torch.nn.ConvTranspose2d(6, 4, (3, 2), 2),
        (2, 5, 5, 6),
    ),
    "ConvTranspose2d, kernel transposed": Kind(
        lambda: nnx.ConvTranspose(
            6, 4, (3, 2), (2, 2), padding="VALID", transpose_kernel=True, rngs=RNGS
        ),
        lambda: torch.nn.ConvTranspose2d(6, 4, (3, 2), 2),
        (2, 5, 5, 6),
    ),
    "ConvTranspose1d": Kind(
        lambda: nnx.ConvTranspose(6, 4, (4,), (2,), padding="VALID", rngs=RNGS),
        lambda: torch.nn.ConvTranspose1d(6, 4, 4, 2),
        (2, 5, 6),
    ),
    "LinearGeneral": Kind(
        lambda: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=RNGS),
        lambda: torch.nn.Linear(6, 20),
        (7, 2, 3),
        lambda module, x: module(x.flatten(1)).unflatten(1, (4, 5)),
    ),
    "attention, joined": Kind(
        attention, joined, (2, 5, 8), lambda module, x: module["attn"](x, x, x)[0]
    ),
    "attention, without bias": Kind(
        lambda: attention(use_bias=False),
        lambda: joined(bias=False),
        (2, 5, 8),
        lambda module, x: module["attn"](x, x, x)[0],
    ),
    "attention, three Linears": Kind(attention, Separate, (2, 5, 8)),
    "attention, named q_proj": Kind(
        named(query="q_proj", key="k_proj", value="v_proj", out="o_proj"), Renamed, (2, 5, 8)
    ),
    "Sequential": Kind(
        lambda: nnx.Sequential(
            nnx.Linear(6, 8, rngs=RNGS), jax.nn.relu, nnx.Linear(8, 3, rngs=RNGS)
        ),
        lambda: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)),
        (5, 6),
    ),
    "List": Kind(
        lambda: Port(
            lambda m, x: m.layers[1](m.layers[0](x)),
            layers=nnx.List([nnx.Linear(6, 6, rngs=RNGS) for _ in range(2)]),
        ),
        lambda: torch.nn.ModuleDict(
            {"layers": torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))}
        ),
        (5, 6),
        lambda module, x: module["layers"](x),
    ),
}


def redrawn(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_()
    return module.eval()


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_loads_computes_and_returns(kind: str) -> None:
    case = KINDS[kind]
    module, model = redrawn(case.theirs()), case.ours()
    x = np.random.default_rng(0).normal(size=case.shape).astype(np.float32)
    with torch.no_grad():
        is_map = type(module).__name__.endswith(("1d", "2d", "GroupNorm")) and x.ndim > 2
        given = torch.from_numpy(np.moveaxis(x, -1, 1).copy() if is_map else x)
        want = case.call(module, given).numpy()
    vit_jax.load_state_dict(model, module.state_dict())
    got = np.asarray(model(jnp.asarray(x)))
    got = np.moveaxis(got, -1, 1) if is_map else got
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

    other = case.theirs()
    ours = vit_jax.state_dict(model, like=module.state_dict())
    other.load_state_dict(as_tensors(ours), strict=True)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), tensor.numpy())
    again = case.ours()
    assert vit_jax.load_state_dict(again, vit_jax.state_dict(model)).kept == ()
    for name, array in vit_jax.state_dict(again).items():
        np.testing.assert_array_equal(array, vit_jax.state_dict(model)[name])


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_those_of_the_state(kind: str) -> None:
    model = KINDS[kind].ours()
    kept = (nnx.Param, nnx.BatchStat)
    paths = {path for path, _ in nnx.to_flat_state(nnx.state(model, kept))}
    assert names_by_path(model).keys() == paths


# ------------------------------------------------------------------------- statistics


def batch_norm() -> nnx.Module:
    return nnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))


def test_the_model_keeps_its_arrays_where_pytorch_trains_on() -> None:
    reference, model = torch.nn.Linear(8, 64), nnx.Linear(8, 64, rngs=RNGS)
    vit_jax.load_state_dict(model, reference.state_dict())
    loaded = {name: array.copy() for name, array in vit_jax.state_dict(model).items()}
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(1)
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, loaded[name])


def test_running_statistics_may_be_kept() -> None:
    module, model = redrawn(torch.nn.BatchNorm1d(6)), batch_norm()
    model.mean[...] = jnp.full(6, 3.0)
    there = {n: t for n, t in module.state_dict().items() if "running" not in n}
    with pytest.raises(ValueError, match=r"missing: running_mean \(running statistics; strict"):
        vit_jax.load_state_dict(model, there)
    report = vit_jax.load_state_dict(model, there, strict=False)
    assert report.kept == ("running_mean", "running_var")
    assert report.unused == ("num_batches_tracked",)
    np.testing.assert_array_equal(model.mean[...], 3.0)
    np.testing.assert_array_equal(model.scale[...], module.weight.detach().numpy())


def test_what_is_not_strict_reports_what_is_left() -> None:
    model = batch_norm()
    report = vit_jax.load_state_dict(
        model, {"weight": np.ones(6), "gamma": np.ones(6)}, strict=False
    )
    assert report.kept == ("bias", "running_mean", "running_var")
    assert report.unused == ("gamma",)
    with pytest.raises(ValueError, match=r"misshapen: weight"):
        vit_jax.load_state_dict(model, {"weight": np.ones(7)}, strict=False)
    abstract = nnx.eval_shape(batch_norm)
    with pytest.raises(ValueError, match=r"missing: bias"):
        vit_jax.load_state_dict(abstract, {"weight": np.ones(6)}, strict=False)


# ------------------------------------------------------------- what PyTorch computes itself


class Indexed(nnx.Module):
    """With an index of its own, or none; and constants."""

    def __init__(self, index: Any = None):
        self.fc = nnx.Linear(3, 2, rngs=RNGS)
        self.freqs = nnx.Variable(jnp.zeros(3))
        self.table = jnp.zeros(2)
        if index is not None:
            self.index = nnx.Variable(jnp.asarray(index))


def with_buffers(**buffers: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    module.fc = torch.nn.Linear(3, 2)
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer)
    return module


@pytest.mark.parametrize("index", [None, [0, 1, 2, 3], [[0, 1, 2, 3]]])
def test_an_index_is_compared_or_ignored(index: Any) -> None:
    module = with_buffers(index=torch.arange(4))
    model = Indexed(index)
    report = vit_jax.load_state_dict(model, module.state_dict())
    assert report.unused == (() if index is not None else ("index",))
    other = with_buffers(index=torch.zeros(4, dtype=torch.int64))
    other.load_state_dict(as_tensors(vit_jax.state_dict(model, like=module.state_dict())))


def test_another_index_is_refused() -> None:
    model = Indexed([0, 2, 1, 3])
    with pytest.raises(ValueError, match=r"differs: index holds whole numbers"):
        vit_jax.load_state_dict(model, with_buffers(index=torch.arange(4)).state_dict())


@pytest.mark.parametrize(
    "mask", [torch.ones(4, 4).tril()[None, None], torch.ones(4, 4, dtype=torch.bool).tril()]
)
def test_a_causal_mask_is_no_weight(mask: torch.Tensor) -> None:
    vit_jax.load_state_dict(Indexed(), with_buffers(mask=mask).state_dict())


@pytest.mark.parametrize(
    "extra", [torch.ones(4), torch.zeros(4, 4), torch.rand(4, 4), torch.eye(4)]
)
def test_a_float_buffer_that_the_model_has_not_is_named(extra: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"unexpected: mask"):
        vit_jax.load_state_dict(Indexed(), with_buffers(mask=extra).state_dict())


def test_constants_are_loaded_where_they_are() -> None:
    model = Indexed()
    vit_jax.load_state_dict(model, with_buffers().state_dict())
    np.testing.assert_array_equal(model.freqs[...], 0)
    module = with_buffers(freqs=torch.arange(3.0), table=torch.arange(2.0))
    vit_jax.load_state_dict(model, module.state_dict())
    np.testing.assert_array_equal(model.freqs[...], [0, 1, 2])
    np.testing.assert_array_equal(model.table, [0, 1])
    ours = vit_jax.state_dict(model, like=module.state_dict())
    with_buffers(freqs=torch.ones(3), table=torch.ones(2)).load_state_dict(as_tensors(ours))
    without = vit_jax.state_dict(model, like=with_buffers().state_dict())
    assert without.keys() == {"fc.weight", "fc.bias"}


# ------------------------------------------------------------------------------- tied heads


class Attending(nnx.Module):
    """The head is a call of the embedding."""

    def __init__(self):
        self.wte = nnx.Embed(7, 4, rngs=RNGS)


class Sharing(Attending):
    """The head has the embedding's variable, under a name that comes before it."""

    def __init__(self):
        super().__init__()
        self.lm_head = nnx.Dict(weight=self.wte.embedding)


def tied() -> torch.nn.Module:
    module = torch.nn.ModuleDict(
        {"wte": torch.nn.Embedding(7, 4), "lm_head": torch.nn.Linear(4, 7, bias=False)}
    )
    module["lm_head"].weight = module["wte"].weight
    return module


@pytest.mark.parametrize("kind", [Attending, Sharing])
def test_a_tied_head(kind: type[Attending]) -> None:
    module, model = tied(), kind()
    vit_jax.load_state_dict(model, module.state_dict())
    np.testing.assert_array_equal(model.wte.embedding[...], module["wte"].weight.detach().numpy())
    assert len(vit_jax.state_dict(model)) == 1
    ours = vit_jax.state_dict(model, like=module.state_dict())
    tied().load_state_dict(as_tensors(ours))
    for one in ("wte.weight", "lm_head.weight"):
        if kind is Sharing:
            vit_jax.load_state_dict(model, {one: module.state_dict()[one]})
        assert list(vit_jax.state_dict(model, like=[one])) == [
            one if kind is Sharing else "wte.weight"
        ]


@pytest.mark.parametrize("kind", [Attending, Sharing])
def test_a_head_that_is_not_tied_is_named(kind: type[Attending]) -> None:
    weights = {**tied().state_dict(), "lm_head.weight": torch.rand(7, 4)}
    with pytest.raises(ValueError, match=r"(unexpected|not tied|differs).*") as error:
        vit_jax.load_state_dict(kind(), weights)
    assert "lm_head.weight" in str(error.value)


def test_zeros_are_tied_to_nothing() -> None:
    """A bias that starts as zero is equal to every other one of its size."""
    weights = {**batch_norm_weights(), "beta": torch.zeros(6)}
    with pytest.raises(ValueError, match=r"unexpected: beta$"):
        vit_jax.load_state_dict(batch_norm(), weights)


def batch_norm_weights() -> dict[str, torch.Tensor]:
    return torch.nn.BatchNorm1d(6).state_dict()


def test_parts_of_an_attention_are_named_where_some_are_missing() -> None:
    weights = Separate().state_dict()
    del weights["attn.key.weight"]
    with pytest.raises(ValueError, match=r"missing: attn\.key\.weight$"):
        vit_jax.load_state_dict(attention(), weights)
    with pytest.raises(ValueError, match=r"missing: attn\.key\.weight$"):
        vit_jax.load_state_dict(attention(), weights, strict=False)
    both = {**joined().state_dict(), **Separate().state_dict()}
    with pytest.raises(ValueError, match=r"not tied: attn\.query\.weight differs"):
        vit_jax.load_state_dict(attention(), both)


def test_other_widths_have_pytorchs_other_names() -> None:
    module = torch.nn.ModuleDict(
        {"attn": torch.nn.MultiheadAttention(8, 4, kdim=6, vdim=6, batch_first=True)}
    )
    model = Port(
        lambda m, x: x,
        attn=nnx.MultiHeadAttention(4, 8, in_kv_features=6, decode=False, rngs=RNGS),
    )
    vit_jax.load_state_dict(model, redrawn(module).state_dict())
    ours = vit_jax.state_dict(model)
    assert ours.keys() == module.state_dict().keys()
    module.load_state_dict(as_tensors(ours))


def test_a_cache_is_no_weight() -> None:
    model = attention()
    model.attn.init_cache((2, 5, 8))
    assert vit_jax.state_dict(model).keys() == joined().state_dict().keys()
