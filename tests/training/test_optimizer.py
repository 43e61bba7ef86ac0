"""Schedules at their corners, AdamW against PyTorch's, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from vit_jax.config import OptimizerConfig
from vit_jax.interop.state_dict import state_dict, torch_shapes
from vit_jax.layers.variables import Frozen
from vit_jax.models.registry import create_model
from vit_jax.training.optimizer import (
    is_matrix,
    learning_rate_of_update,
    make_optimizer,
    make_schedule,
)
from vit_jax.training.state import initial_state


def rates(updates, **fields) -> list[float]:
    config = OptimizerConfig(learning_rate=1.0, **fields)
    schedule = make_schedule(config, steps_per_epoch=10, num_epochs=4)
    return [learning_rate_of_update(schedule, update) for update in updates]


def test_constant():
    assert rates([1, 40]) == [1, 1]


def test_warm_up_is_linear_and_in_epochs():
    warm = rates([1, 2, 6, 11, 12], warmup_epochs=1.0, warmup_learning_rate=0.5)
    assert warm == pytest.approx([0.5, 0.55, 0.75, 1, 1])


def test_cosine_falls_to_the_minimum():
    fall = rates([1, 21, 41], schedule="cosine", min_learning_rate=0.2)
    assert fall == pytest.approx([1, 0.6, 0.2])


def test_linear_after_warm_up():
    fall = rates([11, 26, 41], schedule="linear", warmup_epochs=1.0)
    assert fall == pytest.approx([1, 0.5, 0])


def test_adamw_is_pytorchs(x64):
    start = np.random.default_rng(0).normal(size=(3, 4))
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.AdamW([parameter], 1e-2, (0.8, 0.95), 1e-6, weight_decay=0.1)
    config = OptimizerConfig(learning_rate=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
    ours = make_optimizer(config, make_schedule(config, 10, 1))
    params = {"kernel": jnp.asarray(start)}
    state = ours.init(params)
    for _ in range(10):
        theirs.zero_grad()
        (parameter**3).sum().backward()
        theirs.step()
        gradients = jax.grad(lambda p: (p["kernel"] ** 3).sum())(params)
        updates, state = ours.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], parameter.detach().numpy(), rtol=1e-13)


def decay_of_one_update(**settings) -> dict[str, bool]:
    """Which parameters of a model move when gradients are zero."""
    fields = {"embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3, "scan_layers": True}
    model = nnx.eval_shape(
        lambda: create_model("deit_tiny_distilled_patch16_224", rngs=nnx.Rngs(0), **fields)
    )
    _, params, _ = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.5, **settings)
    optimizer = make_optimizer(config, make_schedule(config, 1, 1))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return {
        ".".join(map(str, path)): bool((leaf[...] != 0).all())
        for path, leaf in nnx.to_flat_state(updates)
    }


def test_all_decays_by_default():
    assert all(decay_of_one_update().values())


def test_only_matrices_decay_on_demand():
    decays = decay_of_one_update(decay_mask="matrices")
    assert {name.rsplit(".", 1)[-1] for name, decayed in decays.items() if decayed} == {"kernel"}
    spared = {name for name, decayed in decays.items() if not decayed}
    assert {"cls_token", "dist_token", "pos_embed", "head.bias", "norm.scale"} <= spared
    assert is_matrix(("blocks", 0, "kernel"))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_se", "t2t_vit_16_ghost", "t2t_vit_dense"]
)
def test_t2t_spares_what_the_release_spares(name, scan):
    """timm's rule, which the release takes: 1-D parameters, biases and `cls_token`."""
    fields = {"scan_layers": True} if scan and name != "t2t_vit_dense" else {}
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **fields))
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


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig(learning_rate=1.0, gradient_clip_norm=1.0)
    optimizer = make_optimizer(config, make_schedule(config, 1, 1))
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
