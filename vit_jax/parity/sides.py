"""The JAX side of a comparison: a model of modules, or a function of arrays."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vit_jax.inspect.recorder import (
    Event,
    Observe,
    Recorder,
    Replace,
    is_float,
    is_watched,
    jax_outputs,
    plain,
    recast,
)
from vit_jax.inspect.stages import Outputs, arrays_of
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.stack import ScannedLayers
from vit_jax.models.base import VisionModel
from vit_jax.parity.optimizers import Step, torch_step
from vit_jax.parity.values import OptimizerSpec, Reference
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
        their values. An output of several arrays is a tuple or a mapping, a pair not of that kind.
        Parameters are named and laid out as PyTorch's state dict: what turns them
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
    """Of the loss, in PyTorch's names and layouts (stages: as the model has them).

    Attributes:
      image: None where the input is whole numbers.
    """

    loss: float
    parameters: Arrays
    stages: Arrays
    image: np.ndarray | None


def as_model_images(reference: Reference, dtype: Any) -> jax.Array:
    """The reference's images in the layout of the models here: channels last."""
    images = reference.images
    if images.ndim == 4:
        images = images.transpose(0, 2, 3, 1)
    return jnp.asarray(images, dtype if images.dtype.kind == "f" else None)


def by_part(output: Any, like: Outputs | None) -> dict[str, jax.Array]:
    """The arrays of a model's output, named as parts of the stage "": "" is the answer.

    Raises:
      ValueError: no array of floats is in it.
    """
    arrays = arrays_of(output, is_watched)
    outputs = jax_outputs(arrays)
    parts = {} if outputs is None else outputs.parts(like)
    found = {part: arrays[name] for name, part in parts.items()}
    if "" not in found or not is_float(found[""]):
        raise ValueError(
            "wanted a model that answers with a floating-point array, alone or in a tuple or "
            f"mapping, got {type(output).__name__}"
        )
    return found


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
      outputs: see `Reference`.
    """

    def __init__(self, model: nnx.Module, dtype: Any, outputs: Mapping[str, Outputs] | None = None):
        self.model = recast(model, dtype)
        self.dtype, self.outputs = dtype, outputs or {}
        self.is_plain = not _has_stacks(model)
        self.torch_stages = dict(getattr(type(model), "torch_stages", {}))

    def weights(self) -> Arrays:
        return state_dict(self.model)

    def _call(self, model: Any, images: jax.Array) -> dict[str, jax.Array]:
        """The arrays of the model's output, see `by_part`."""
        # In train mode with dropout the difference is to be seen, not an error.
        drops = isinstance(model, VisionModel) and model.uses_dropout and not model.deterministic
        output = model(images, rngs=nnx.Rngs(dropout=0)) if drops else model(images)
        return by_part(output, self.outputs.get(""))

    def forward(
        self,
        images: jax.Array,
        observe: Observe,
        replace: Replace | None = None,
        *,
        keyless: bool = False,
    ) -> None:
        """Runs the model with its layers one by one, operation by operation."""
        recorder = Recorder(observe, replace, keyless=keyless, outputs=self.outputs)
        self._call(recorder.watch(plain(self.model)), images)

    def as_it_stands(self, images: jax.Array) -> dict[str, jax.Array]:
        """The outputs of the model itself, with its scans and its rematerialisation."""
        return self._call(self.model, images)

    def gradients(
        self,
        reference: Reference,
        replace: Replace | None = None,
        stages: Iterable[str] = (),
        *,
        keyless: bool = False,
        borrowed: dict[str, jax.Array] | None = None,
    ) -> Gradients:
        """Gradients of the reference's loss; by `stages` too where asked for.

        Args:
          replace, keyless: see `Recorder`.
          borrowed: arrays of the reference that `replace` reads: what it computes from them counts
            as computed from the model's own.
        """
        images = as_model_images(reference, self.dtype)
        is_trial = replace is not None or keyless
        model = plain(self.model) if stages or is_trial else self.model
        wanted = set(stages)
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        if wanted:

            def note(event: Event, value: jax.Array) -> None:
                if event.stage in wanted and is_float(value):
                    shapes[event.stage] = jax.ShapeDtypeStruct(value.shape, value.dtype)

            jax.eval_shape(lambda: self.forward(images, note))
        perturb = {stage: jnp.zeros(leaf.shape, leaf.dtype) for stage, leaf in shapes.items()}
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, perturb, lent, images):
            model = nnx.merge(graph, params, rest)
            if borrowed is not None:
                borrowed.update(lent)
            if perturb or is_trial:
                model = Recorder(
                    lambda *_: None, replace, perturb, keyless=keyless, outputs=self.outputs
                ).watch(model)
            return loss_of(reference, self._call(model, images)[""])

        by = (0, 1, 2, 3) if is_float(images) else (0, 1, 2)
        differentiate = jax.value_and_grad(loss, argnums=by)
        if not is_trial:  # a trial is one of many: not worth the compilation
            differentiate = jax.jit(differentiate)
        lent = dict(borrowed or {})
        value, (by_params, by_stages, by_lent, *by_images) = differentiate(
            params, perturb, lent, images
        )
        if borrowed is not None:
            borrowed.update(lent)
        named = state_dict(nnx.merge(graph, by_params, rest))
        named = {name: named[name] for name in trained_names(model)}
        for name, gradient in by_lent.items():
            named[name] = named.get(name, 0.0) + np.asarray(gradient)
        return Gradients(
            float(value),
            named,
            {name: np.asarray(by_stages[name]) for name in perturb},  # in the model's order
            _torch_images(by_images),
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
        untrained = reference.untrained.intersection(trained_names(model))
        frozen = {int(numbers[name].flat[0]) for name in untrained}

        def loss(leaves: list[jax.Array]) -> jax.Array:
            model = nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)
            return loss_of(reference, self._call(model, images)[""])

        losses, leaves = _descend(loss, leaves, frozen, reference.optimizer, step)
        named = state_dict(nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest))
        return losses, {name: named[name] for name in trained_names(model)}

    def with_weights(self, weights: Mapping[str, np.ndarray]) -> "ModelSide":
        """The same model with the reference's arrays where it has them."""
        copy = ModelSide(self.model, self.dtype, self.outputs)
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

    def __init__(self, function: JaxFunction, dtype: Any, outputs: Mapping[str, Outputs]):
        self.function, self.dtype, self.outputs = function, dtype, outputs
        self.params = {name: jnp.asarray(a, dtype) for name, a in function.params.items()}
        self.is_plain = True
        self.torch_stages: dict[str, str] = {}

    def weights(self) -> Arrays:
        return {name: np.asarray(array) for name, array in self.params.items()}

    def _call(
        self, params: Mapping[str, jax.Array], images: jax.Array
    ) -> tuple[dict[str, jax.Array], Mapping[str, jax.Array]]:
        """The arrays of its output, see `by_part`, and its stages."""
        output, stages = self.function.apply(params, images), {}
        if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
            output, stages = output
        return by_part(output, self.outputs.get("")), stages

    def stages(self, images: jax.Array) -> dict[str, jax.Array]:
        """The values of its stages, and after them the arrays of its output."""
        output, stages = self._call(self.params, images)
        return {**stages, **output}

    def _split(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        frozen = self.function.frozen
        return (
            {n: a for n, a in self.params.items() if n not in frozen},
            {n: a for n, a in self.params.items() if n in frozen},
        )

    def gradients(self, reference: Reference) -> Gradients:
        trained, frozen = self._split()

        def loss(params, images):
            return loss_of(reference, self._call({**params, **frozen}, images)[0][""])

        images = as_model_images(reference, self.dtype)
        differentiate = jax.value_and_grad(loss, argnums=(0, 1) if is_float(images) else (0,))
        value, (by_params, *by_images) = differentiate(trained, images)
        named = {name: np.asarray(array) for name, array in by_params.items()}
        return Gradients(float(value), named, {}, _torch_images(by_images))

    def train(self, reference: Reference, step: Step | None = None) -> tuple[np.ndarray, Arrays]:
        assert reference.optimizer is not None
        trained, frozen = self._split()
        images = as_model_images(reference, self.dtype)
        untouched = {i for i, name in enumerate(trained) if name in reference.untrained}

        def loss(leaves: list[jax.Array]) -> jax.Array:
            params = {**dict(zip(trained, leaves, strict=True)), **frozen}
            return loss_of(reference, self._call(params, images)[0][""])

        leaves = list(trained.values())
        losses, leaves = _descend(loss, leaves, untouched, reference.optimizer, step)
        arrays = map(np.asarray, leaves)
        return losses, dict(zip(trained, arrays, strict=True))


Side = ModelSide | FunctionSide


def _torch_images(gradients: Sequence[jax.Array]) -> np.ndarray | None:
    """The images' gradient, where there is one, in PyTorch's layout."""
    for array in map(np.asarray, gradients):
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    return None


def is_dropout(module: Any) -> bool:
    """Whether it hands its input on in eval mode."""
    return isinstance(module, Dropout | nnx.Dropout)
