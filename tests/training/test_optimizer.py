"""The update rules against PyTorch's and against their formulas, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from vit_jax.config import OptimizerConfig
from vit_jax.layers.variables import Frozen
from vit_jax.models.registry import abstract_model
from vit_jax.training.optimizer import make_optimizer, norm_in_one
from vit_jax.training.param_groups import ParameterGroups, is_matrix
from vit_jax.training.schedules import make_schedule
from vit_jax.training.state import initial_state
from vit_jax.weights.state_dict import state_dict, torch_shapes

STEPS = 10
RATES = [1e-2 / (1 + number) for number in range(STEPS)]
START = np.random.default_rng(0).normal(size=(3, 4))


def updated(config: OptimizerConfig, start, groups: ParameterGroups | None = None):
    """Parameters after STEPS updates of the loss sum(p^3) at falling rates, in float64."""
    optimizer = make_optimizer(config, lambda count: jnp.asarray(RATES)[count], groups)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state):
        gradients = jax.tree.map(lambda param: 3 * param**2, params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = update(params, state)
    return params


def updated_by_torch(make, starts: dict[str, np.ndarray], factors: dict[str, float]):
    """The same by an optimizer of PyTorch's, with a parameter group for each array."""
    params = {name: torch.nn.Parameter(torch.tensor(start)) for name, start in starts.items()}
    optimizer = make([{"params": [param], "factor": factors[n]} for n, param in params.items()])
    for rate in RATES:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.zero_grad()
        sum((param**3).sum() for param in params.values()).backward()
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


ADAMW = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
TORCH = {
    "adamw": (
        ADAMW,
        lambda groups: torch.optim.AdamW(groups, 1.0, (0.8, 0.95), 1e-6, weight_decay=0.1),
    ),
    "sgd": (
        {"name": "sgd", "momentum": 0.8, "weight_decay": 0.1},
        lambda groups: torch.optim.SGD(groups, 1.0, momentum=0.8, weight_decay=0.1),
    ),
    "nesterov": (
        {"name": "sgd", "momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
        lambda groups: torch.optim.SGD(groups, 1.0, momentum=0.8, weight_decay=0.1, nesterov=True),
    ),
    "sgd without momentum": (
        {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1},
        lambda groups: torch.optim.SGD(groups, 1.0, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("rule", TORCH)
def test_the_rule_and_its_groups_are_pytorchs(rule, x64):
    fields, make = TORCH[rule]
    starts, factors = {"whole": START, "slow": START[:2]}, {"whole": 1.0, "slow": 0.01}
    groups = ParameterGroups(factors={("slow",): np.asarray(0.01)})
    ours = updated(OptimizerConfig(learning_rate=1.0, **fields), starts, groups)
    theirs = updated_by_torch(make, starts, factors)
    for name in starts:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12)
    assert np.abs(ours["slow"] - START[:2]).max() < np.abs(ours["whole"] - START).max() / 50


def test_lamb_is_that_of_the_paper(x64):
    """1904.00962, algorithm 2, with phi(z) = z."""
    b1, b2, eps, decay = 0.8, 0.95, 1e-6, 0.1
    config = OptimizerConfig(name="lamb", learning_rate=1.0, **ADAMW)
    starts = {"a": START, "zero": np.zeros(3)}
    ours = updated(config, starts)
    for name, p in starts.items():
        m, v = np.zeros_like(p), np.zeros_like(p)
        for t, rate in enumerate(RATES, start=1):
            g = 3 * p**2
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * p
            norm, of_step = np.sqrt((p**2).sum()), np.sqrt((r**2).sum())
            p = p - rate * (norm / of_step if norm and of_step else 1.0) * r
        np.testing.assert_allclose(ours[name], p, rtol=1e-12)


def test_lamb_moves_a_parameter_that_is_zero(x64):
    config = OptimizerConfig(name="lamb", learning_rate=1.0)
    optimizer = make_optimizer(config, lambda count: 0.5)
    params = {"bias": jnp.zeros(3)}
    updates, _ = optimizer.update({"bias": jnp.ones(3)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], -0.5, rtol=1e-7)


def test_lamb_takes_the_norm_of_each_of_the_layers_that_are_stacked(x64):
    config = OptimizerConfig(name="lamb", learning_rate=1.0, **ADAMW)
    layers = np.random.default_rng(1).normal(size=(3, 4, 2)) * np.array([1, 10, 100])[:, None, None]
    groups = ParameterGroups(stacked=frozenset({("w",)}))
    stacked = updated(config, {"w": layers}, groups)["w"]
    alone = [updated(config, {"w": layer})["w"] for layer in layers]
    np.testing.assert_allclose(stacked, np.stack(alone), rtol=1e-13)
    assert np.abs(stacked / updated(config, {"w": layers})["w"] - 1).max() > 1e-3


def test_lion_is_that_of_the_paper(x64):
    """2302.06675, algorithm 2."""
    b1, b2, decay = 0.8, 0.95, 0.1
    ours = updated(OptimizerConfig(name="lion", learning_rate=1.0, **ADAMW), {"a": START})["a"]
    p, m = START, np.zeros_like(START)
    for rate in RATES:
        g = 3 * p**2
        p, m = p - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * p), b2 * m + (1 - b2) * g
    np.testing.assert_allclose(ours, p, rtol=1e-12)


def test_a_factor_for_each_of_the_layers_that_are_stacked(x64):
    groups = ParameterGroups(factors={("w",): np.array([0.25, 1.0])})
    config = OptimizerConfig(learning_rate=1.0, **ADAMW)
    optimizer = make_optimizer(config, lambda count: 0.1, groups)
    plain = make_optimizer(config, lambda count: 0.1)
    params = {"w": jnp.asarray(START[:2])}
    ours, theirs = (o.update(params, o.init(params), params)[0]["w"] for o in (optimizer, plain))
    np.testing.assert_allclose(ours, theirs * np.array([[0.25], [1.0]]), rtol=1e-15)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_decay_spares_what_is_no_matrix_under_every_rule(name):
    params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    for mask, bias in (("matrices", 0.0), ("all", -0.5 if name != "lamb" else -1.0)):
        config = OptimizerConfig(
            name=name, learning_rate=1.0, weight_decay=0.5, decay_mask=mask, momentum=0.0
        )
        optimizer = make_optimizer(config, lambda count: 1.0)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        assert (updates["head"]["kernel"] < -0.4).all()
        np.testing.assert_allclose(updates["head"]["bias"], bias, rtol=1e-6)


def decay_of_one_update(**settings) -> dict[str, bool]:
    """Which parameters of a model move when gradients are zero."""
    fields = {"embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3, "scan_layers": True}
    model = abstract_model("deit_tiny_distilled_patch16_224", **fields)
    _, params, _ = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.5, **settings)
    optimizer = make_optimizer(config, make_schedule(config, 1, 1))

    @jax.jit
    def moved(params: nnx.State) -> nnx.State:
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        return jax.tree.map(lambda update: (update != 0).all(), updates)

    return {
        ".".join(map(str, path)): bool(leaf[...]) for path, leaf in nnx.to_flat_state(moved(params))
    }


def test_all_decays_by_default():
    assert all(decay_of_one_update().values())


def test_only_matrices_decay_on_demand():
    decays = decay_of_one_update(decay_mask="matrices")
    assert {name.rsplit(".", 1)[-1] for name, decayed in decays.items() if decayed} == {"kernel"}
    spared = {name for name, decayed in decays.items() if not decayed}
    assert {"cls_token", "dist_token", "pos_embed", "head.bias", "norm.scale"} <= spared
    assert is_matrix(("blocks", 0, "kernel"))
    # DeiT's release exempts `pos_embed` and `cls_token`, and not the distillation token.
    of_deit = decay_of_one_update(decay_mask="deit")
    assert {name for name in decays if of_deit[name] != decays[name]} == {"dist_token"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [("t2t_vit_dense", {"block_config": (1, 2)})]
    + [
        (name, {"depth": 2, "scan_layers": scan})
        for name in ("t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_se", "t2t_vit_16_ghost")
        for scan in (False, True)
    ],
)
def test_t2t_spares_what_the_release_spares(name, fields):
    """timm's rule, which the release takes: 1-D parameters, biases and `cls_token`."""
    model = abstract_model(name, **fields)
    shapes = torch_shapes(model)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    mask = nnx.map_state(lambda path, v: v.replace(np.full(v.shape, is_matrix(path))), params)
    decays = {
        key: bool(value.all())
        for key, value in state_dict(nnx.merge(graph, mask, filled(rest))).items()
    }
    frozen = {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    for key, shape in shapes.items():
        if key in frozen:
            assert key not in optimised_names(model)
            continue
        spared = len(shape) <= 1 or key.endswith(".bias") or key == "cls_token"
        assert decays[key] == (not spared), key


def filled(state: nnx.State) -> nnx.State:
    return nnx.map_state(lambda _, variable: variable.replace(np.zeros(variable.shape)), state)


def optimised_names(model: nnx.Module) -> set[str]:
    params = nnx.state(model, nnx.Param)
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}


@pytest.mark.parametrize("norm", [optax.tree.norm, norm_in_one])
def test_clipping_bounds_the_global_norm(norm):
    config = OptimizerConfig(learning_rate=1.0, gradient_clip_norm=1.0)
    optimizer = make_optimizer(config, make_schedule(config, 1, 1), norm=norm)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    # Adam forgets the gradient's scale, except against eps: look at its first moment.
    _, state = optimizer.update(
        {"a": jnp.full(2, 30.0), "b": jnp.full(2, 40.0)}, optimizer.init(params), params
    )
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(
        np.concatenate([moment["a"], moment["b"]]),
        np.array([0.6, 0.6, 0.8, 0.8]) / np.sqrt(2) * 0.1,
        rtol=1e-5,
    )


def test_frozen_arrays_are_in_the_state_and_not_in_the_optimizer():
    class Model(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(3))
            self.table = Frozen(jnp.ones(5))

    config = OptimizerConfig(learning_rate=1.0)
    state = initial_state(Model(), make_optimizer(config, make_schedule(config, 1, 1)))
    assert [leaf.shape for leaf in jax.tree.leaves(state.frozen)] == [(5,)]
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} == {(3,), ()}
