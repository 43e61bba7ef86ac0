"""The JAX side of a comparison: a model of modules, or a function of arrays."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vit_jax.inspect.recorder import Event, Observe, Recorder, Replace, plain, recast
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.stack import ScannedLayers
from vit_jax.layers.unfold import SoftSplit
from vit_jax.models.base import VisionModel
from vit_jax.parity.optimizers import Step, torch_step
from vit_jax.parity.values import Expected, OptimizerSpec, Reference
from vit_jax.weights.state_dict import load_state_dict, state_dict, trained_names

Arrays = dict[str, np.ndarray]
# (parameters by PyTorch's name and in its layout, images) -> the output, or that and values of
# stages by name.
Apply = Callable[[Mapping[str, jax.Array], jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class JaxFunction:
    """A JAX function of anybody's, to be compared like a model.

    Attributes:
      apply: (parameters, images) to the output, or to the pair of it and a mapping of stages to
        their values. Parameters are named and laid out as PyTorch's state dict: what turns them
        into the function's own form belongs to the function, so that gradients come back in
        PyTorch's form.
      params: the parameters, by PyTorch's names.
      frozen: names among them that are not trained.
      name: for the report.
    """

    apply: Apply
    params: Mapping[str, Any]
    frozen: frozenset[str] = frozenset()
    name: str = "a JAX function"


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of the loss, in PyTorch's names and layouts (stages: as the model has them)."""

    loss: float
    parameters: Arrays
    stages: Arrays
    image: np.ndarray


def as_model_images(reference: Reference, dtype: Any) -> jax.Array:
    """The reference's images in the layout of the models here: channels last."""
    images = reference.images
    if images.ndim == 4:
        images = images.transpose(0, 2, 3, 1)
    return jnp.asarray(images, dtype)


def first_of(output: Any) -> Any:
    """The first of several outputs: the class head's."""
    return output[0] if isinstance(output, tuple | list) else output


def loss_of(reference: Reference, output: jax.Array) -> jax.Array:
    """The loss that the reference was differentiated by."""
    if reference.labels is not None:
        labels = jnp.asarray(reference.labels, jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(output, labels).mean()
    return (output * jnp.asarray(reference.direction, output.dtype)).mean()


class ModelSide:
    """A model of NNX modules in one precision.

    Args:
      model: any; it is not changed.
      dtype: what is computed in.
    """

    def __init__(self, model: nnx.Module, dtype: Any):
        self.model = recast(model, dtype)
        self.dtype = dtype
        self.is_plain = not _has_stacks(model)
        self.torch_stages = dict(getattr(type(model), "torch_stages", {}))

    def weights(self) -> Arrays:
        return state_dict(self.model)

    def _call(self, model: Any, images: jax.Array) -> jax.Array:
        # In train mode with dropout the difference is to be seen, not an error.
        drops = isinstance(model, VisionModel) and model.uses_dropout and not model.deterministic
        output = model(images, rngs=nnx.Rngs(dropout=0)) if drops else model(images)
        return first_of(output)

    def forward(
        self,
        images: jax.Array,
        observe: Observe,
        replace: Replace | None = None,
        *,
        keyless: bool = False,
    ) -> jax.Array:
        """Runs the model with its layers one by one, operation by operation."""
        watched = Recorder(observe, replace, keyless=keyless).watch(plain(self.model))
        return self._call(watched, images)

    def as_it_stands(self, images: jax.Array) -> jax.Array:
        """The output of the model itself, with its scans and its rematerialisation."""
        return self._call(self.model, images)

    def gradients(
        self, reference: Reference, replace: Replace | None = None, stages: Iterable[str] = ()
    ) -> Gradients:
        """Gradients of the reference's loss; by `stages` too where asked for."""
        images = as_model_images(reference, self.dtype)
        model = plain(self.model) if stages or replace else self.model
        wanted = set(stages)
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        if wanted:

            def note(event: Event, value: jax.Array) -> None:
                if event.stage in wanted:
                    shapes[event.stage] = jax.ShapeDtypeStruct(value.shape, value.dtype)

            jax.eval_shape(lambda: self.forward(images, note))
        perturb = {stage: jnp.zeros(leaf.shape, leaf.dtype) for stage, leaf in shapes.items()}
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, images, perturb):
            model = nnx.merge(graph, params, rest)
            if perturb or replace:
                model = Recorder(lambda *_: None, replace, perturb).watch(model)
            return loss_of(reference, self._call(model, images))

        differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2))
        if replace is None:  # a trial is one of many: not worth the compilation
            differentiate = jax.jit(differentiate)
        value, (by_params, by_images, by_stages) = differentiate(params, images, perturb)
        named = state_dict(nnx.merge(graph, by_params, rest))
        return Gradients(
            float(value),
            {name: named[name] for name in trained_names(model)},
            {name: np.asarray(by_stages[name]) for name in perturb},  # in the model's order
            _torch_images(np.asarray(by_images)),
        )

    def train(self, reference: Reference, step: Step | None = None) -> tuple[np.ndarray, Arrays]:
        """Losses before each step of the reference's optimizer and after the last, and parameters.

        Args:
          step: the optimizer; None means PyTorch's.
        """
        assert reference.optimizer is not None
        images = as_model_images(reference, self.dtype)
        model = plain(self.model)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        leaves, tree = jax.tree.flatten(params)
        # One leaf an array, since the layers stand one by one.
        marked = jax.tree.unflatten(
            tree, [jnp.full(leaf.shape, i) for i, leaf in enumerate(leaves)]
        )
        numbers = state_dict(nnx.merge(graph, marked, rest))
        frozen = {int(numbers[name].flat[0]) for name in reference.untrained if name in numbers}

        def loss(leaves: list[jax.Array]) -> jax.Array:
            model = nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)
            return loss_of(reference, self._call(model, images))

        losses, leaves = _descend(loss, leaves, frozen, reference.optimizer, step)
        named = state_dict(nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest))
        return losses, {name: named[name] for name in trained_names(model)}

    def with_weights(self, weights: Mapping[str, np.ndarray]) -> "ModelSide":
        """The same model with the reference's arrays where it has them."""
        copy = ModelSide(self.model, self.dtype)
        own = copy.weights()
        same = {n: a for n, a in weights.items() if n in own and a.shape == own[n].shape}
        load_state_dict(copy.model, {**own, **same})
        return copy


def _has_stacks(model: nnx.Module) -> bool:
    return any(
        isinstance(module, ScannedLayers)
        or (isinstance(module, VisionModel) and module.config.remat != "none")
        for _, module in nnx.iter_modules(model)
    )


def _descend(
    loss: Callable[[list[jax.Array]], jax.Array],
    leaves: list[jax.Array],
    frozen: Collection[int],
    optimizer: OptimizerSpec,
    step: Step | None,
) -> tuple[np.ndarray, list[jax.Array]]:
    """Losses before each step and after the last, and the leaves; the `frozen` ones stay."""
    step = step or torch_step(optimizer)

    @jax.jit
    def update(leaves, state, number):
        value, grads = jax.value_and_grad(loss)(leaves)
        new, state = step.update(leaves, grads, state, number)
        kept = [
            old if i in frozen else leaf
            for i, (old, leaf) in enumerate(zip(leaves, new, strict=True))
        ]
        return kept, state, value

    state, losses = step.init(leaves), []
    for number in range(optimizer.steps):
        leaves, state, value = update(leaves, state, jnp.asarray(number))
        losses.append(float(value))
    _, _, last = update(leaves, state, jnp.asarray(optimizer.steps))  # compiled already
    return np.array([*losses, float(last)]), leaves


class FunctionSide:
    """A `JaxFunction` in one precision, with the methods of `ModelSide` that it can have."""

    def __init__(self, function: JaxFunction, dtype: Any):
        self.function, self.dtype = function, dtype
        self.params = {name: jnp.asarray(a, dtype) for name, a in function.params.items()}
        self.is_plain = True
        self.torch_stages: dict[str, str] = {}

    def weights(self) -> Arrays:
        return {name: np.asarray(array) for name, array in self.params.items()}

    def _call(self, params: Mapping[str, jax.Array], images: jax.Array):
        output = self.function.apply(params, images)
        is_pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping)
        return output if is_pair else (first_of(output), {})

    def stages(self, images: jax.Array) -> dict[str, jax.Array]:
        """The values of its stages, and under "" its output."""
        output, stages = self._call(self.params, images)
        return {**stages, "": output}

    def _split(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        frozen = self.function.frozen
        return (
            {n: a for n, a in self.params.items() if n not in frozen},
            {n: a for n, a in self.params.items() if n in frozen},
        )

    def gradients(self, reference: Reference) -> Gradients:
        trained, frozen = self._split()

        def loss(params, images):
            return loss_of(reference, self._call({**params, **frozen}, images)[0])

        value, (by_params, by_images) = jax.value_and_grad(loss, argnums=(0, 1))(
            trained, as_model_images(reference, self.dtype)
        )
        named = {name: np.asarray(array) for name, array in by_params.items()}
        return Gradients(float(value), named, {}, _torch_images(np.asarray(by_images)))

    def train(self, reference: Reference, step: Step | None = None) -> tuple[np.ndarray, Arrays]:
        assert reference.optimizer is not None
        trained, frozen = self._split()
        images = as_model_images(reference, self.dtype)
        untouched = {i for i, name in enumerate(trained) if name in reference.untrained}

        def loss(leaves: list[jax.Array]) -> jax.Array:
            params = {**dict(zip(trained, leaves, strict=True)), **frozen}
            return loss_of(reference, self._call(params, images)[0])

        leaves = list(trained.values())
        losses, leaves = _descend(loss, leaves, untouched, reference.optimizer, step)
        arrays = map(np.asarray, leaves)
        return losses, dict(zip(trained, arrays, strict=True))


Side = ModelSide | FunctionSide


def _torch_images(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def is_dropout(module: Any) -> bool:
    """Whether it hands its input on in eval mode."""
    return isinstance(module, Dropout | nnx.Dropout)


def in_shape(array: np.ndarray, shape: tuple[int, ...], module: Any = None) -> Iterator[np.ndarray]:
    """The array in each layout in which PyTorch may have it, that is of this shape.

    Images and convolutions have their channels last here and first there; `nn.Unfold` gives
    features before patches; a module may run with the sequence before the batch. Where axes are
    of one size there are several.
    """
    orders: list[tuple[int, ...]] = []
    if array.ndim == 4:
        orders = [(0, 1, 2, 3), (0, 3, 1, 2)]
    elif array.ndim == 3:
        orders = [(0, 2, 1)] if isinstance(module, SoftSplit) else [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
    elif array.shape == shape:
        yield array
    for order in orders:
        turned = array.transpose(order)
        if turned.shape == shape:
            yield turned


def error_of(array: np.ndarray, expected: Expected, module: Any = None) -> float | None:
    """The difference from a value in the layout that is nearest; None where none is of its shape.

    A fault that is nothing but one layout for another shows in the values after it.
    """
    errors = [expected.error(turned) for turned in in_shape(array, expected.shape, module)]
    return min(errors, default=None)
