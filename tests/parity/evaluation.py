"""One run of a fixture through our model: every number that the fixture holds a reference for."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vit_jax
from tests.golden import Golden
from tests.parity.stages import recorded


class Evaluation(NamedTuple):
    """Results by name, arrays in PyTorch's layout."""

    logits: np.ndarray
    stages: dict[str, np.ndarray]
    loss: float
    gradients: dict[str, np.ndarray]
    image_gradient: np.ndarray  # (B, C, H, W)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Runner:
    """A model and a fixture's batch with the compiled functions that the parity tests share."""

    def __init__(self, golden: Golden, model: nnx.Module, dtype: Any):
        if golden.class_head_only:
            model.train()  # no dropout is active: train mode returns both heads' logits
        self.golden, self.dtype = golden, dtype
        self.graph, self.params, self.rest = nnx.split(model, nnx.Param, ...)
        self.images = jnp.asarray(golden.images, dtype)
        self.labels = jnp.asarray(golden.labels, jnp.int32)
        self._differentiate = jax.jit(
            jax.value_and_grad(self._loss, argnums=(0, 1), has_aux=True), static_argnums=2
        )

    def _loss(self, params, images, with_stages):
        model = nnx.merge(self.graph, params, self.rest)
        paths = self.golden.spec["activations"] if with_stages else ()
        with recorded(model, paths) as stages:
            logits = model(images)
        if self.golden.class_head_only:
            logits = logits[0]
        return cross_entropy(logits, self.labels), (logits, stages)

    def forward(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits and stage outputs alone, operation by operation: without jit."""
        _, (logits, stages) = self._loss(self.params, self.images, True)
        return np.asarray(logits), self._in_stated_layout(stages)

    def evaluate(self) -> Evaluation:
        (loss, (logits, stages)), (grads, image_grad) = self._differentiate(
            self.params, self.images, True
        )
        return Evaluation(
            np.asarray(logits),
            self._in_stated_layout(stages),
            float(loss),
            self.named(grads),
            np.asarray(image_grad).transpose(0, 3, 1, 2),
        )

    def _in_stated_layout(self, stages: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        """Tokens (B, N, features) as (B, features, N) where PyTorch's stage has that shape."""
        outputs = {name: np.asarray(output) for name, output in stages.items()}
        for name, output in outputs.items():
            stated = tuple(self.golden.spec["activations"][name]["shape"])
            if output.shape != stated and output.swapaxes(-1, -2).shape == stated:
                outputs[name] = output.swapaxes(-1, -2)
        return outputs

    def named(self, params: nnx.State) -> dict[str, np.ndarray]:
        """By PyTorch's names, frozen arrays left out: they are in `rest`, not in `params`."""
        named = vit_jax.state_dict(nnx.merge(self.graph, params, self.rest))
        frozen = self.golden.spec["non_trainable"]
        return {name: array for name, array in named.items() if name not in frozen}

    def train(
        self, make_optimizer: Callable[[dict[str, Any]], optax.GradientTransformation]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Losses before each AdamW update and after the last, and the trained parameters."""
        recipe = self.golden.spec["trajectory"]
        without_gradient = self.golden.spec["params_without_grad"]
        untrained = {tuple(name.split(".")[:-1]) for name in without_gradient}
        # torch's AdamW leaves a parameter without a gradient alone, decay included; optax needs a
        # mask, through which the gradient, here exactly zero, passes as the update.
        optimizer = optax.masked(
            make_optimizer(recipe),
            jax.tree_util.tree_map_with_path(
                lambda path, _: tuple(str(key.key) for key in path)[:-1] not in untrained,
                nnx.to_pure_dict(self.params),
            ),
        )
        # optax computes its bias correction from an integer step and a Python float. Of the steps
        # alone: to jit, a function under another promotion is another function.
        promoting = functools.partial(jax.numpy_dtype_promotion, "standard")
        params, losses = self.params, []
        update = jax.jit(optimizer.update)
        with promoting():
            opt_state = optimizer.init(nnx.to_pure_dict(params))
        for _ in range(recipe["steps"]):
            (loss, _), (grads, _) = self._differentiate(params, self.images, True)
            losses.append(float(loss))
            pure = nnx.to_pure_dict(params)
            with promoting():
                updates, opt_state = update(nnx.to_pure_dict(grads), opt_state, pure)
                updated = optax.apply_updates(pure, updates)
            params = jax.tree.map(lambda leaf: leaf, params)  # a copy, to be filled
            nnx.replace_by_pure_dict(params, updated)
        (loss, _), _ = self._differentiate(params, self.images, True)
        return np.asarray([*losses, float(loss)]), self.named(params)


def optax_adamw(recipe: dict[str, Any]) -> optax.GradientTransformation:
    b1, b2 = recipe["betas"]
    decay = recipe["weight_decay"]
    return optax.adamw(recipe["lr"], b1=b1, b2=b2, eps=recipe["eps"], weight_decay=decay)


def torch_adamw(recipe: dict[str, Any]) -> optax.GradientTransformation:
    """AdamW with its bias corrections from a table in float64, as PyTorch has them.

    In float32 optax's 1 - 0.999**step is off by 1.3e-5 at the first step, which alone moves the
    losses by more than ten times the noise of PyTorch's float32 run.
    """
    b1, b2 = recipe["betas"]
    steps = np.arange(1, recipe["steps"] + 1)
    corrections = np.float32(1 / (1 - b1**steps)), np.float32(1 / (1 - b2**steps))

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.asarray(0)

    def update(grads, state, params):
        mean, square, step = state
        correct1, correct2 = (jnp.asarray(table)[step] for table in corrections)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, grads)
        square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, square, grads)
        updates = jax.tree.map(
            lambda m, s, p: (
                -recipe["lr"]
                * (
                    m * correct1 / (jnp.sqrt(s * correct2) + recipe["eps"])
                    + recipe["weight_decay"] * p
                )
            ),
            mean,
            square,
            params,
        )
        return updates, (mean, square, step + 1)

    return optax.GradientTransformation(init, update)
