"""Optimizers: PyTorch's to the letter, and transformations of optax solved and put in words."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import vit_jax
from tests.tiers import mostly_slow
from vit_jax.parity import JaxFunction, OptimizerSpec, Reference, Report, compare, sides
from vit_jax.parity.optimizer_words import Arrays, differences
from vit_jax.parity.optimizers import Dynamics, Rule, Trainable, rule_step
from vit_jax.parity.solve_optimizer import Solved, solve
from vit_jax.parity.torch_trace import trace_torch

Spec = OptimizerSpec
X = np.random.default_rng(0).normal(size=(5, 6))


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = (
            torch.nn.Linear(6, 8),
            torch.nn.LayerNorm(8),
            torch.nn.Linear(8, 4),
        )

    def forward(self, x):
        return self.fc2(torch.tanh(self.norm(self.fc1(x))))


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return self.fc2(jnp.tanh(self.norm(self.fc1(x))))


@functools.cache
def torch_net() -> TorchNet:
    torch.manual_seed(0)
    return TorchNet()


@functools.cache
def net() -> Net:
    model = Net()
    vit_jax.load_state_dict(model, torch_net().state_dict())
    return model


@functools.cache
def reference(spec: Spec) -> Reference:
    return trace_torch(torch_net(), X, optimizer=spec)


def trained(
    spec: Spec, transformation: Any = None, precisions: tuple[str, ...] = ("float64",)
) -> Report:
    return compare(
        net(),
        reference(spec),
        optimizer=spec,
        transformation=transformation,
        precisions=precisions,
    )


# ------------------------------------------------------------------------------- both sides

_WARM = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 10)
_NO_DECAY = ((r"bias$|norm", {"weight_decay": 0.0}),)
SPECS = {
    "adam": Spec("adam"),
    "nesterov": Spec("sgd", nesterov=True),
    "dampening": Spec("sgd", dampening=0.3),
    "dampening without momentum": Spec("sgd", betas=(0.0, 0.9), dampening=0.3),
    "rmsprop": Spec("rmsprop", betas=(0.9, 0.99)),
    "schedule": Spec(learning_rate=_WARM),
    "rates": Spec(learning_rate=tuple(np.linspace(0.01, 0.001, 10))),
    "clipped norm": Spec(clip_norm=0.1),
    "clipped values": Spec("sgd", clip_value=0.01, learning_rate=0.1),
    "all of it": Spec(
        "sgd",
        learning_rate=_WARM,
        groups=(*_NO_DECAY, ("fc2", {"learning_rate_factor": 0.1})),
        clip_norm=0.1,
    ),
}


@pytest.mark.parametrize("name", mostly_slow(SPECS, ["rmsprop", "all of it"]))
def test_both_sides_train_alike(name: str) -> None:
    report = trained(SPECS[name])
    assert report.ok, report.first
    for section in ("trained", "losses"):
        worst = report.worst(section)
        assert worst is not None
        assert worst.relative < 1e-12


def test_groups_go_by_the_names_of_the_report() -> None:
    """The model's, not the module's."""
    own = {"fc1": "first", "norm": "middle", "fc2": "last"}

    class Renamed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, other in own.items():
                setattr(self, other, getattr(torch_net(), name))

        def forward(self, x):
            return self.last(torch.tanh(self.middle(self.first(x))))

    def train(module: torch.nn.Module, pattern: str, **names: Any) -> Reference:
        groups = ((pattern, {"weight_decay": 9.0, "learning_rate_factor": 2.0}),)
        return trace_torch(module, X, optimizer=Spec(steps=1, groups=groups), **names)

    names = tuple((rf"^{other}\.", f"{name}.") for name, other in own.items())
    want, got = train(torch_net(), r"^fc1\.w"), train(Renamed(), r"^fc1\.w", names=names)
    plain = reference(Spec(steps=1))
    for name, value in want.trained.items():
        array = got.trained[name].array  # type: ignore[attr-defined]
        assert value.error(array) == 0, name
        assert (plain.trained[name].error(array) > 1e-3) == (name == "fc1.weight")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "lion"}, r'^an optimizer is "adamw", "adam", "sgd" or "rmsprop", got \'lion\'$'),
        ({"learning_rate": (0.1, 0.2)}, r"a rate for each of the 10 steps, got 2$"),
        ({"learning_rate": "fast"}, r"^learning_rate: wanted a number, one for each step, or a"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, r"^wanted clip_norm or clip_value, got both$"),
        ({"clip_norm": 0.0}, r"^clip_norm: wanted a number above 0, got 0.0$"),
        ({"nesterov": True}, r"^nesterov and dampening are SGD's: adamw has neither$"),
        ({"name": "sgd", "nesterov": True, "dampening": 0.1}, r"^nesterov: wanted a momentum"),
        ({"groups": (("a(", {}),)}, r"^groups: wanted pairs of a regular expression and settings"),
        ({"groups": (("a", {"lr": 1}),)}, r"^groups: wanted learning_rate_factor and weight_decay"),
    ],
)
def test_settings_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Spec(**fields)
    assert "\n" not in str(caught.value)


def test_a_spec_is_hashable_and_compared_by_what_it_does() -> None:
    groups = (("bias", (("weight_decay", 0),)),)
    one = Spec(steps=2, learning_rate=lambda step: 0.1 * (step + 1), groups=groups)
    other = Spec(steps=2, learning_rate=(0.1, 0.2), groups=(("bias", {"weight_decay": 0.0}),))
    assert other.rates == (0.1, 0.2)
    assert one.groups == other.groups
    assert np.allclose(one.rates, other.rates)
    assert hash(other) == hash(Spec(steps=2, learning_rate=(0.1, 0.2), groups=groups))


# ------------------------------------------------------------------------------- faults

Transformation = Any


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _by_axes(many: Transformation, one: Transformation) -> Transformation:
    def label(params: Any) -> Any:
        return jax.tree.map(lambda leaf: "many" if leaf.ndim > 1 else "one", params)

    return optax.partition({"many": many, "one": one}, label)


def _chain(*parts: Transformation) -> Transformation:
    return optax.chain(*parts)


def _adamw(rate: Any = 1e-3, **settings: Any) -> Transformation:
    return optax.adamw(rate, **{"weight_decay": 0.05, **settings})


def _uncorrected(count: int = 6) -> Transformation:
    """Adam whose moments start at zero and are not corrected, as some write it by hand."""
    rule = Rule(
        (Dynamics("adam", 0.9, 0.999, 1e-8, corrected=False),) * count,
        np.full((10, count), 1e-3),
        np.full((10, count), 5e-5),
        np.zeros(count),
    )
    step = rule_step(rule)

    def update(grads: Any, state: Any, params: Any) -> Any:
        leaves, tree = jax.tree.flatten(params)
        new, state = step.update(leaves, jax.tree.leaves(grads), state, jnp.asarray(1))
        return jax.tree.unflatten(tree, [n - p for n, p in zip(new, leaves, strict=True)]), state

    return optax.GradientTransformation(lambda params: step.init(jax.tree.leaves(params)), update)


def _l2(rate: float = 0.05) -> Transformation:
    return optax.add_decayed_weights(rate)


W, SGD, WARM = Spec(), Spec("sgd", learning_rate=0.1), Spec(learning_rate=_WARM)
_ONE_AXIS = "on arrays with one axis (4 of 6: "
# The reference, the transformation, the fault, and all of its text, or its parts.
FAULTS: dict[str, tuple[Spec, Callable[[], Transformation], str, tuple[str, ...]]] = {
    "rate": (
        W,
        lambda: _adamw(3e-4),
        "learning_rate",
        ("learning rate 0.0003, the reference's 0.001",),
    ),
    "injected rate": (
        W,
        lambda: optax.inject_hyperparams(optax.adamw)(3e-4, weight_decay=0.05),
        "learning_rate",
        ("learning rate 0.0003, the reference's 0.001",),
    ),
    "decay of optax": (
        W,
        lambda: optax.adamw(1e-3),
        "weight_decay",
        ("weight decay 0.0001, the reference's 0.05",),
    ),
    "no decay": (
        W,
        lambda: optax.adam(1e-3),
        "weight_decay",
        ("no weight decay, the reference's 0.05",),
    ),
    "masked decay": (
        W,
        lambda: _adamw(mask=_matrices),
        "decay_group",
        (f"no weight decay {_ONE_AXIS}", ", the reference's 0.05"),
    ),
    "decay of all": (
        Spec(groups=_NO_DECAY),
        _adamw,
        "decay_group",
        (f"weight decay 0.05 {_ONE_AXIS}", "the reference has none there"),
    ),
    "late": (
        WARM,
        lambda: _adamw(lambda n: _WARM(jnp.maximum(n - 1, 0))),
        "schedule",
        ("the schedule is one step late: step n has the rate of step n - 1",),
    ),
    "early": (
        WARM,
        lambda: _adamw(lambda n: _WARM(n + 1)),
        "schedule",
        ("the schedule is one step early: step n has the rate of step n + 1",),
    ),
    "constant for a schedule": (
        WARM,
        lambda: _adamw(1e-2),
        "schedule",
        ("step 1 has the learning rate 0.01, the reference's 0",),
    ),
    "half a schedule": (
        WARM,
        lambda: _adamw(lambda n: 0.5 * _WARM(n)),
        "learning_rate",
        ("the learning rate is 0.5 times the reference's at every step",),
    ),
    "b2": (
        W,
        lambda: _adamw(b2=0.99),
        "betas",
        ("betas (0.9, 0.99), the reference's (0.9, 0.999)",),
    ),
    "odd betas": (W, lambda: _adamw(b1=0.87, b2=0.9876), "betas", ("betas (0.87, 0.9876),",)),
    "epsilon": (W, lambda: _adamw(eps=1e-7), "eps", ("epsilon 1e-07, the reference's 1e-08",)),
    "epsilon under the root": (
        W,
        lambda: _adamw(eps=0.0, eps_root=1e-8),
        "eps_inside",
        ("epsilon 1e-08 stands under the root", "the reference's 1e-08 is added to the root"),
    ),
    "two epsilons": (
        W,
        lambda: _adamw(eps_root=1e-12),
        "eps_inside",
        ("epsilon 1e-08, and 1e-12 under the root",),
    ),
    "clipped": (
        W,
        lambda: _chain(optax.clip_by_global_norm(0.1), _adamw()),
        "clip",
        ("gradients are clipped to a global norm of 0.1, the reference's are not",),
    ),
    "clipped by value": (
        W,
        lambda: _chain(optax.clip(0.01), _adamw()),
        "clip",
        ("gradients are clipped to values of 0.01, the reference's are not",),
    ),
    "clipped array by array": (
        W,
        lambda: _chain(optax.clip_by_block_rms(0.01), _adamw()),
        "clip",
        ("clipped to a root mean square of 0.01, each array by itself",),
    ),
    "not clipped": (
        Spec(clip_norm=0.1),
        _adamw,
        "clip",
        ("gradients are not clipped, the reference's are, to a global norm of 0.1",),
    ),
    "L2": (
        W,
        lambda: _chain(_l2(), optax.adam(1e-3)),
        "coupled_decay",
        ("0.05 is added to the gradient", "the reference's 0.05 is decoupled"),
    ),
    "decay after the rate": (
        W,
        lambda: _chain(optax.adam(1e-3), _l2()),
        "weight_decay",
        ("every step adds 0.05 of the parameter to it: the weight decay is added after the learn",),
    ),
    "decay without the rate": (
        W,
        lambda: _chain(optax.adam(1e-3), _l2(-0.05)),
        "weight_decay",
        ("every step takes 0.05 of the parameter off: the weight decay is not multiplied by the",),
    ),
    "SGD's decay after its momentum": (
        SGD,
        lambda: _chain(optax.trace(0.9), _l2(), optax.scale(-0.1)),
        "decoupled_decay",
        ("0.05 is decoupled", "the reference's 0.05 is added to the gradient"),
    ),
    "no correction": (W, _uncorrected, "bias_correction", ("no bias correction of the moments",)),
    "no momentum": (
        SGD,
        lambda: _chain(_l2(), optax.sgd(0.1)),
        "momentum",
        ("no momentum, the reference's 0.9",),
    ),
    "Nesterov": (
        SGD,
        lambda: _chain(_l2(), optax.sgd(0.1, 0.9, nesterov=True)),
        "nesterov",
        ("Nesterov's momentum, the reference's is plain",),
    ),
    "NAdam": (W, lambda: optax.nadamw(1e-3, weight_decay=0.05), "nesterov", ("Nesterov's",)),
    "Lion": (
        W,
        lambda: optax.lion(1e-3, weight_decay=0.05),
        "optimizer",
        ("the updates are Lion's (betas (0.9, 0.99)), the reference's are AdamW's (betas (0.9, 0",),
    ),
    "RMSprop": (
        W,
        lambda: optax.rmsprop(1e-3, 0.99),
        "optimizer",
        ("RMSprop's (alpha 0.99, no momentum, epsilon 1e-08 under the root)", "no weight decay"),
    ),
    "RMSprop of optax": (
        Spec("rmsprop", betas=(0.0, 0.99), weight_decay=0.0),
        lambda: optax.rmsprop(1e-3, 0.99),
        "eps_inside",
        ("epsilon 1e-08 stands under the root",),
    ),
    "SGD": (
        W,
        lambda: optax.sgd(1e-3, 0.9),
        "optimizer",
        (
            "the updates are SGD's (momentum 0.9)",
            "; further, no weight decay, the reference's 0.05",
        ),
    ),
    "masked": (
        W,
        lambda: optax.masked(_adamw(), _matrices),
        "masked",
        (f"the gradient itself is added {_ONE_AXIS}", "optax.masked hands on the updates"),
    ),
    "frozen": (
        W,
        lambda: _by_axes(_adamw(), optax.set_to_zero()),
        "frozen",
        (f"no update {_ONE_AXIS}", "the reference trains them"),
    ),
    "two rates": (
        W,
        lambda: _by_axes(_adamw(), _adamw(1e-4)),
        "learning_rate",
        (f"learning rate 0.0001 {_ONE_AXIS}", "the reference's 0.001"),
    ),
    "two betas": (
        W,
        lambda: _by_axes(_adamw(), _adamw(b2=0.9)),
        "betas",
        (f"betas (0.9, 0.9) {_ONE_AXIS}", "the reference's (0.9, 0.999)"),
    ),
    "rate and mask": (
        W,
        lambda: _adamw(3e-4, mask=_matrices),
        "learning_rate",
        ("learning rate 0.0003, the reference's 0.001; further, no weight decay on arrays",),
    ),
    "late and clipped": (
        WARM,
        lambda: _chain(
            optax.clip_by_global_norm(0.1), _adamw(lambda n: _WARM(jnp.maximum(n - 1, 0)))
        ),
        "schedule",
        ("one step late", "; further, gradients are clipped to a global norm of 0.1"),
    ),
    "L2 and epsilon": (
        W,
        lambda: _chain(_l2(0.01), optax.adam(1e-3, eps=1e-6)),
        "coupled_decay",
        ("decay 0.01 is added to the gradient", "; further, epsilon 1e-06, the reference's 1e-08"),
    ),
    "four at once": (
        W,
        lambda: _chain(optax.clip_by_global_norm(0.1), _adamw(3e-4, eps=1e-6, mask=_matrices)),
        "learning_rate",
        ("learning rate", "; further, no weight decay on", "; further, epsilon", "; further, grad"),
    ),
}

SHAPES = {"bias": (3,), "scale": (4,), "weight": (4, 3), "offset": (2,), "head": (5, 2), "x": (2,)}


def solved(transformation: Transformation, spec: Spec) -> tuple[Solved, Trainable]:
    """Of six small arrays, four of them of one axis."""
    leaves = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    flat, tree = jax.tree.flatten(leaves)
    trainable = Trainable(
        flat, sorted(leaves), frozenset(), functools.partial(jax.tree.unflatten, tree)
    )
    return solve(transformation, trainable, spec), trainable


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        FAULTS, ["epsilon under the root", "L2", "late and clipped", "masked", "SGD", "two betas"]
    ),
)
def test_the_settings_are_solved(name: str) -> None:
    """Without a model."""
    spec, make, fault, parts = FAULTS[name]
    if spec.groups:  # by the names here
        spec = Spec(groups=(("bias|scale|offset|x", {"weight_decay": 0.0}),))
    found, trainable = solved(make(), spec)
    assert found.rule is not None, found.known
    arrays = Arrays(trainable.names, [leaf.ndim for leaf in trainable.leaves], range(6))
    faults = differences(found.rule, spec, arrays)
    text = "; further, ".join(text for _, text in faults)
    assert faults[0][0] == fault, text
    for part in parts:
        if "root mean square" not in part:  # of one number an array: a matter of training
            assert part in text
    assert len(faults) == 1 + "".join(parts).count("; further, ") or name == "RMSprop"


@pytest.mark.parametrize("name", mostly_slow(FAULTS, ["masked decay"]))
def test_a_fault_is_named_and_explains_the_training(name: str) -> None:
    spec, make, fault, parts = FAULTS[name]
    report = trained(spec, make())
    assert report.stage == "optimizer"
    assert report.diagnosis is not None
    assert report.diagnosis.fault == fault, report.diagnosis
    for part in parts:
        assert part in report.diagnosis.text
    assert report.diagnosis.complete


# ------------------------------------------------------------------------------- none

CLEAN: dict[str, tuple[Spec, Callable[[], Transformation]]] = {
    "adamw": (W, _adamw),
    "injected": (W, lambda: optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=0.05)),
    "schedule": (WARM, lambda: _adamw(_WARM)),
    "rates": (
        Spec(learning_rate=(0.0, 1 / 300, 2 / 300, *(float(_WARM(step)) for step in range(3, 10)))),
        lambda: _adamw(_WARM),
    ),
    "groups": (Spec(groups=_NO_DECAY), lambda: _adamw(mask=_matrices)),
    "sgd": (SGD, lambda: _chain(_l2(), optax.sgd(0.1, 0.9))),
    "adam": (Spec("adam"), lambda: _chain(_l2(), optax.adam(1e-3))),
    "rmsprop": (
        Spec("rmsprop", betas=(0.0, 0.99), weight_decay=0.0),
        lambda: optax.rmsprop(1e-3, 0.99, eps_in_sqrt=False),
    ),
    "clipped values": (Spec(clip_value=0.01), lambda: _chain(optax.clip(0.01), _adamw())),
    "clipped norm": (
        Spec(clip_norm=0.01),
        lambda: _chain(optax.clip_by_global_norm(0.01), _adamw()),
    ),
}


@pytest.mark.parametrize("name", mostly_slow(CLEAN, []))
def test_nothing_is_found_where_nothing_is_wrong(name: str) -> None:
    spec, make = CLEAN[name]
    report = trained(spec, make(), ("float64", "float32"))
    assert report.ok, (report.first, report.diagnosis)


def test_a_schedule_in_float32_is_noted() -> None:
    """Of optax, whatever the model's type: it is neither a fault nor passed over."""
    spec, make = CLEAN["rates"]
    report = trained(spec, make())
    assert report.ok
    (note,) = report.notes
    assert note.startswith("training was compared without a harmless difference: the learning rat")
    assert "are rounded to float32: step 2 has 0.00333333" in note


@pytest.mark.slow
def test_float32_excuses_no_more_than_the_bias_correction() -> None:
    def halve(updates: Any, params: Any = None) -> Any:
        """Half precision in float32 alone: the float64 run cannot see it."""
        del params
        return jax.tree.map(
            lambda u: u.astype("bfloat16").astype(u.dtype) if u.dtype == jnp.float32 else u, updates
        )

    report = trained(W, _chain(_adamw(), optax.stateless(halve)), ("float64", "float32"))
    assert report.first is not None
    assert report.first.precision == "float32"


# ------------------------------------------------------------------------------- unsolved


def _across() -> Transformation:
    """Of an array alone Adam's, but for where another array's gradient has another sign."""

    def update(updates: Any, params: Any = None) -> Any:
        del params
        first, *rest = jax.tree.leaves(updates)
        agree = jnp.array([(jnp.sum(first) > 0) == (jnp.sum(leaf) > 0) for leaf in rest]).all()
        return jax.tree.map(lambda u: jnp.where(agree, u, 1.01 * u), updates)

    return _chain(optax.stateless(update), _adamw())


UNSOLVED = {
    "across": (_across, "on gradients or parameters in a way that is not solved"),
    "lamb": (lambda: optax.lamb(1e-3, weight_decay=0.05), "depend on the parameters, but not as"),
    "amsgrad": (lambda: optax.amsgrad(1e-3), "on the gradients in a way that is not solved"),
    "adagrad": (lambda: optax.adagrad(1e-2), "it treats large gradients unlike small ones"),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(UNSOLVED, ["across"]))
def test_of_what_is_not_solved_no_setting_is_named(name: str) -> None:
    make, known = UNSOLVED[name]
    found, _ = solved(make(), W)
    assert found.rule is None
    assert known in found.known


@pytest.mark.slow
def test_the_first_step_of_what_is_not_solved() -> None:
    report = trained(SGD, _chain(_l2(), optax.sgd(0.3), optax.apply_every(1), _odd()))
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "optimizer"
    assert not report.diagnosis.complete
    assert "its first step is 3 times the reference's on every array" in report.diagnosis.text


def _odd() -> Transformation:
    """The square of each second update: no rule that is known."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        odd = jax.tree.map(lambda u: jnp.where(state % 2 == 1, u * jnp.abs(u), u), updates)
        return odd, state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


# ------------------------------------------------------------------------------- other sides


@pytest.mark.slow
def test_a_function() -> None:
    """A `JaxFunction` too has its optimizer solved; its arrays are given by name."""
    params = {name: entry.numpy() for name, entry in torch_net().state_dict().items()}

    @jax.numpy_rank_promotion("allow")
    def apply(params, x):
        hidden = x @ params["fc1.weight"].T + params["fc1.bias"]
        hidden = hidden - hidden.mean(-1, keepdims=True)
        hidden = hidden / jnp.sqrt(jnp.square(hidden).mean(-1, keepdims=True) + 1e-5)
        hidden = hidden * params["norm.weight"] + params["norm.bias"]
        return jnp.tanh(hidden) @ params["fc2.weight"].T + params["fc2.bias"]

    def mask(params: dict[str, Any]) -> dict[str, bool]:
        return {name: not name.startswith("fc2") for name in params}

    spec = Spec(steps=2)
    report = compare(
        JaxFunction(apply, params),
        reference(spec),
        optimizer=spec,
        transformation=_adamw(mask=mask),
        precisions=("float64",),
    )
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "decay_group"
    assert "no weight decay on some arrays (2 of 6: fc2.bias, fc2.weight)" in report.diagnosis.text
    assert report.diagnosis.complete


# ------------------------------------------------------------------------------- the loss


def _scaled(monkeypatch: pytest.MonkeyPatch, change: Callable[[jax.Array], jax.Array]) -> None:
    loss_of = sides.loss_of
    monkeypatch.setattr(sides, "loss_of", lambda ref, output: change(loss_of(ref, output)))


@pytest.mark.parametrize(
    ("factor", "steps", "words"),
    [
        (5.0, 2, "the loss is 5 times the reference's, and so is every gradient: as one summed ov"),
        pytest.param(0.2, 0, "averaged over the 5 samples of the batch", marks=pytest.mark.slow),
        pytest.param(0.3, 0, "the loss is 0.3 times the reference's", marks=pytest.mark.slow),
    ],
)
def test_a_loss_summed_for_averaged(
    factor: float, steps: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scaled(monkeypatch, lambda loss: factor * loss)
    spec = Spec("sgd", steps=steps) if steps else None
    report = compare(net(), reference(spec or SGD), optimizer=spec, precisions=("float64",))
    assert report.stage == "loss"
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "loss_sum"
    assert words in report.diagnosis.text
    assert report.diagnosis.complete


@pytest.mark.slow
def test_gradients_that_are_not_one_multiple_are_no_loss() -> None:
    """All are doubled but those of one array."""

    class Doubled(Net):
        def __call__(self, x):
            bias = self.fc1.bias[...]
            half = jnp.expand_dims(0.5 * bias + jax.lax.stop_gradient(0.5 * bias), 0)
            output = self.fc2(jnp.tanh(self.norm(x @ self.fc1.kernel[...] + half)))
            return 2 * output - jax.lax.stop_gradient(output)

    model = Doubled()
    vit_jax.load_state_dict(model, torch_net().state_dict())
    report = compare(model, reference(SGD), precisions=("float64",))
    wrong = {row.name for row in report.rows if row.section == "gradients" and row.max_abs > 1e-9}
    assert wrong == reference(SGD).gradients.keys() - {"fc1.bias"}
    assert report.diagnosis is None or report.diagnosis.fault != "loss_sum"
