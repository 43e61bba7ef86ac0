"""One run of a fixture through our model: every number that the fixture holds a reference for."""

import functools
import math
from collections.abc import Callable, Collection
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


# From a fixture's recipe.
OptimizerOf = Callable[[dict[str, Any]], optax.GradientTransformation]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Runner:
    """A model and a fixture's batch with the compiled functions that the parity tests share."""

    def __init__(self, golden: Golden, model: nnx.Module, dtype: Any):
        if golden.class_head_only:
            model.train()  # no dropout is active: train mode returns both heads' logits
        self.golden = golden
        self.graph, self.params, self.rest = nnx.split(model, nnx.Param, ...)
        self.images = np.asarray(golden.images, dtype)
        self.labels = np.asarray(golden.labels, np.int32)
        self._run = jax.jit(self._loss)
        # One program for the evaluation and the steps.
        self._differentiate = jax.jit(jax.value_and_grad(self._loss, argnums=(0, 1), has_aux=True))

    def _loss(self, params, images):
        model = nnx.merge(self.graph, params, self.rest)
        with recorded(model, self.golden.spec["activations"]) as stages:
            logits = model(images)
        if self.golden.class_head_only:
            logits = logits[0]
        return cross_entropy(logits, self.labels), (logits, stages)

    def forward(self, params: nnx.State | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits and stage outputs alone, of the model's own parameters or of others."""
        _, (logits, stages) = self._run(params or self.params, self.images)
        return np.asarray(logits), self._in_stated_layout(stages)

    def evaluate(self) -> Evaluation:
        (loss, (logits, stages)), (grads, image_grad) = self._differentiate(
            self.params, self.images
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
        self, make_optimizer: OptimizerOf, frozen: Collection[str] = ()
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Losses before each AdamW update and after the last, and the trained parameters.

        Args:
          make_optimizer: from the fixture's recipe.
          frozen: modules that are not trained, by their dotted paths.
        """
        recipe = self.golden.spec["trajectory"]
        parts = _Parts(self.params, self.golden.spec["params_without_grad"], frozen)
        # torch's AdamW leaves a parameter without a gradient alone, decay included: its gradient,
        # here exactly zero, passes as the update.
        optimizer = optax.partition(
            {
                "trained": make_optimizer(recipe),
                "without gradient": optax.identity(),
                "frozen": optax.set_to_zero(),
            },
            {part: part for part in parts.names},
        )

        @jax.jit
        def update(grads, state, vectors):
            updates, state = optimizer.update(grads, state, vectors)
            return optax.apply_updates(vectors, updates), state

        vectors, params, losses = parts.vectors(self.params), self.params, []
        # optax computes its bias correction from an integer step and a Python float. Of the steps
        # alone: to jit, a function under another promotion is another function.
        promoting = functools.partial(jax.numpy_dtype_promotion, "standard")
        with promoting():
            state = jax.tree.map(
                lambda leaf: np.zeros(leaf.shape, leaf.dtype),
                jax.eval_shape(optimizer.init, vectors),
            )
        for _ in range(recipe["steps"]):
            (loss, _), (grads, _) = self._differentiate(params, self.images)
            losses.append(float(loss))
            with promoting():
                vectors, state = update(parts.vectors(grads), state, vectors)
            params = parts.tree(vectors)
        (loss, _), _ = self._differentiate(params, self.images)
        return np.asarray([*losses, float(loss)]), self.named(params)


class _Parts:
    """Parameters as a few long vectors, which an optimizer takes as one array each.

    An update of as many arrays as a model has would take as long to compile as its gradients.
    """

    names = ("trained", "without gradient", "frozen")

    def __init__(self, params: nnx.State, without_gradient: list[str], frozen: Collection[str]):
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(params)
        untrained = {name.rpartition(".")[0] for name in without_gradient}
        self._shapes = [leaf.shape for _, leaf in leaves]
        self._part_of_leaf = []
        for path, _ in leaves:
            module = ".".join(str(key.key) for key in path[:-2])
            name = "without gradient" if module in untrained else "trained"
            self._part_of_leaf.append("frozen" if module in frozen else name)

    def vectors(self, params: nnx.State) -> dict[str, np.ndarray]:
        flat = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)]
        empty = np.zeros(0, flat[0].dtype)
        pairs = list(zip(self._part_of_leaf, flat, strict=True))
        return {
            name: np.concatenate([empty, *(leaf for part, leaf in pairs if part == name)])
            for name in self.names
        }

    def tree(self, vectors: dict[str, jax.Array]) -> nnx.State:
        """The parameters that `vectors` made them of."""
        left = {name: np.asarray(vector) for name, vector in vectors.items()}
        leaves = []
        for shape, part in zip(self._shapes, self._part_of_leaf, strict=True):
            size = math.prod(shape)
            leaves.append(left[part][:size].reshape(shape))
            left[part] = left[part][size:]
        return jax.tree.unflatten(self._structure, leaves)


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
