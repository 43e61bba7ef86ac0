"""The JAX side of a comparison: a model of modules, or a function of arrays."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.extend import core

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
from vit_jax.parity.inputs import Inputs, float_arrays, with_arrays
from vit_jax.parity.modes import ready_to_run, statistics_of
from vit_jax.parity.named import has_names, naming
from vit_jax.parity.optimizers import Leaves, Step, Trainable, optax_step, torch_step
from vit_jax.parity.values import OptimizerSpec, Reference
from vit_jax.parity.widen import Islands
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
      image: None where the input is whole numbers, or several.
      inputs: of several inputs, by name.
    """

    loss: float
    parameters: Arrays
    stages: Arrays
    image: np.ndarray | None
    inputs: Arrays = dataclasses.field(default_factory=dict)


def as_model_images(reference: Reference, dtype: Any) -> Any:
    """The reference's images, or `Inputs`, in the layout of the models here: channels last."""
    images = reference.images
    if isinstance(images, Inputs):
        return images.turned(to_first=False).map(
            lambda _, array: jnp.asarray(array, dtype if array.dtype.kind == "f" else None)
        )
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
    if reference.own_loss is not None:
        return reference.own_loss(output)
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
      islands: where it computes in narrower types.
    """

    def __init__(
        self,
        model: nnx.Module,
        dtype: Any,
        outputs: Mapping[str, Outputs] | None = None,
        islands: Islands | None = None,
    ):
        self.model = ready_to_run(recast(model, dtype))
        self.islands = islands or Islands()
        self.dtype, self.outputs = dtype, outputs or {}
        self.is_plain = not _has_stacks(model)
        self.is_named = False  # whether its code names values
        self.torch_stages = dict(getattr(type(model), "torch_stages", {}))

    def weights(self, like: Collection[str] | None = None) -> Arrays:
        """The arrays by PyTorch's names: where they have several, those of `like`."""
        return state_dict(self.model, like=None if like is None else set(like))

    def _call(
        self, model: Any, images: jax.Array, recorder: Recorder | None = None
    ) -> dict[str, jax.Array]:
        """The arrays of the model's output, see `by_part`; of one that a recorder watches too."""
        with contextlib.ExitStack() as stack:
            path = lambda: "" if recorder is None else recorder.path  # noqa: E731
            stack.enter_context(self.islands.widened(path))
            if recorder is not None and self.is_named:
                stack.enter_context(naming(recorder.named))
            return self._parts(model, images)

    def see(self, jaxpr: core.ClosedJaxpr) -> bool:
        """Whether the model has to be run again, by what a run of it looks like."""
        was, self.is_named = self.is_named, self.is_named or has_names(jaxpr)
        return self.islands.see(jaxpr) or self.is_named != was

    def _parts(self, model: Any, images: jax.Array) -> dict[str, jax.Array]:
        # In train mode with dropout the difference is to be seen, not an error.
        drops = isinstance(model, VisionModel) and model.uses_dropout and not model.deterministic
        keys: dict[str, Any] = {"rngs": nnx.Rngs(dropout=0)} if drops else {}
        if getattr(model, "channels_first", False):
            images = _channels_first(images)
        if isinstance(images, Inputs):
            return by_part(images.call(model, **keys), self.outputs.get(""))
        output = model(images, **keys)
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
        self._call(recorder.watch(plain(self.model)), images, recorder)

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

        def loss(params, perturb, lent, floats):
            model = nnx.merge(graph, params, rest, copy=True)
            if borrowed is not None:
                borrowed.update(lent)
            recorder = None
            if perturb or is_trial:
                recorder = Recorder(
                    lambda *_: None, replace, perturb, keyless=keyless, outputs=self.outputs
                )
                model = recorder.watch(model)
            return loss_of(reference, self._call(model, with_arrays(images, floats), recorder)[""])

        differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
        if not is_trial:  # a trial is one of many: not worth the compilation
            differentiate = jax.jit(differentiate)
        lent = dict(borrowed or {})
        value, (by_params, by_stages, by_lent, by_inputs) = differentiate(
            params, perturb, lent, float_arrays(images)
        )
        if borrowed is not None:
            borrowed.update(lent)
        like = reference.trainable
        named = state_dict(nnx.merge(graph, by_params, rest), like=like)
        named = {name: named[name] for name in trained_names(model, like)}
        for name, gradient in by_lent.items():
            named[name] = named.get(name, 0.0) + np.asarray(gradient)
        return Gradients(
            float(value),
            named,
            {name: np.asarray(by_stages[name]) for name in perturb},  # in the model's order
            **_of_inputs(images, by_inputs),
        )

    def trainable(self, reference: Reference) -> Trainable:
        """Its parameters, given to a transformation as `nnx.Optimizer` gives them."""
        model = plain(self.model)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        leaves, tree = jax.tree.flatten(params)
        # One leaf an array, since the layers stand one by one.
        marked = jax.tree.unflatten(
            tree, [jnp.full(leaf.shape, i) for i, leaf in enumerate(leaves)]
        )
        like = reference.trainable
        numbers = state_dict(nnx.merge(graph, marked, rest), like=like)
        trained = trained_names(model, like)
        names = {int(i): name for name in trained for i in np.unique(numbers[name])}
        return Trainable(
            leaves,
            [names.get(i, f"array {i}") for i in range(len(leaves))],
            frozenset(i for i, name in names.items() if name in reference.untrained),
            functools.partial(jax.tree.unflatten, tree),
        )

    def train(
        self, reference: Reference, step: Step | optax.GradientTransformation | None = None
    ) -> tuple[np.ndarray, Arrays]:
        """Losses before each step of the reference's optimizer and after the last, and parameters.

        Args:
          step: the optimizer; None means PyTorch's.
        """
        images = as_model_images(reference, self.dtype)
        model = plain(self.model)
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        trainable = self.trainable(reference)
        like = reference.trainable

        def loss(leaves: Leaves, rest: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, trainable.unflatten(leaves), rest, copy=True)
            value = loss_of(reference, self._call(model, images)[""])
            return value, nnx.split(model, nnx.Param, ...)[2]

        losses, leaves, rest = _descend(loss, trainable, rest, reference.optimizer, step)
        model = nnx.merge(graph, trainable.unflatten(leaves), rest)
        named = state_dict(model, like=like)
        trained = {name: named[name] for name in trained_names(model, like)}
        return losses, trained | (statistics_of(model) if reference.is_train else {})

    def statistics(self, images: jax.Array) -> Arrays:
        """The running statistics after one run."""
        model = plain(self.model)
        graph, state = nnx.split(model)

        @jax.jit
        def after(state):
            model = nnx.merge(graph, state, copy=True)
            self._call(model, images)
            return nnx.split(model)[1]

        return statistics_of(nnx.merge(graph, after(state)))

    def with_weights(self, weights: Mapping[str, np.ndarray]) -> "ModelSide":
        """The same model with the reference's arrays where it has them."""
        copy = ModelSide(self.model, self.dtype, self.outputs, self.islands)
        copy.is_named = self.is_named
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
    loss: Callable[[Leaves, Any], tuple[jax.Array, Any]],
    trainable: Trainable,
    rest: Any,
    optimizer: OptimizerSpec | None,
    step: Step | optax.GradientTransformation | None,
) -> tuple[np.ndarray, Leaves, Any]:
    """Losses before each step and after the last, the leaves, and what the runs made of the rest.

    The frozen leaves stay.
    """
    assert optimizer is not None
    if step is None:
        step = torch_step(optimizer, trainable.names)
    elif not isinstance(step, Step):
        step = optax_step(step, trainable.unflatten)

    @jax.jit
    def update(leaves, rest, state, number):
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(leaves, rest)
        new, state = step.update(leaves, grads, state, number)
        kept = [
            old if i in trainable.frozen else leaf
            for i, (old, leaf) in enumerate(zip(leaves, new, strict=True))
        ]
        return kept, rest, state, value

    leaves = trainable.leaves
    state, losses = step.init(leaves), []
    for number in range(optimizer.steps):
        leaves, rest, state, value = update(leaves, rest, state, jnp.asarray(number))
        losses.append(float(value))
    # Compiled already.
    _, rest, _, last = update(leaves, rest, state, jnp.asarray(optimizer.steps))
    return np.array([*losses, float(last)]), leaves, rest


class FunctionSide:
    """A `JaxFunction` in one precision, with the methods of `ModelSide` that it can have."""

    def __init__(self, function: JaxFunction, dtype: Any, outputs: Mapping[str, Outputs]):
        self.function, self.dtype, self.outputs = function, dtype, outputs
        self.params = {name: jnp.asarray(a, dtype) for name, a in function.params.items()}
        self.is_plain = True
        self.torch_stages: dict[str, str] = {}
        self.islands = Islands()
        self.is_named = False

    def weights(self, like: Collection[str] | None = None) -> Arrays:
        del like
        return {name: np.asarray(array) for name, array in self.params.items()}

    def _call(
        self,
        params: Mapping[str, jax.Array],
        images: jax.Array,
        perturb: Mapping[str, jax.Array] | None = None,
    ) -> tuple[dict[str, jax.Array], Mapping[str, jax.Array], dict[str, jax.Array]]:
        """The arrays of its output, see `by_part`; its stages; and the values that its code names.

        Args:
          perturb: by stage, what is added to named values.
        """
        found: dict[str, jax.Array] = {}
        recorder = Recorder(lambda event, value: found.update({event.stage: value}), None, perturb)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.islands.widened(str))
            if self.is_named:
                stack.enter_context(naming(recorder.named))
            if isinstance(images, Inputs):
                output, stages = images.call(self.function.apply, params), {}
            else:
                output, stages = self.function.apply(params, images), {}
            if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
                output, stages = output
            return by_part(output, self.outputs.get("")), stages, found

    def stages(self, images: jax.Array) -> dict[str, jax.Array]:
        """The values of its stages, and after them the arrays of its output."""
        jaxpr = jax.make_jaxpr(self._call)(self.params, images)
        self.is_named = has_names(jaxpr)
        if self.dtype == jnp.float64:
            self.islands.see(jaxpr)
        output, stages, named = self._call(self.params, images)
        return {**named, **stages, **output}

    def _split(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        frozen = self.function.frozen
        return (
            {n: a for n, a in self.params.items() if n not in frozen},
            {n: a for n, a in self.params.items() if n in frozen},
        )

    def gradients(self, reference: Reference, stages: Collection[str] = ()) -> Gradients:
        """Gradients of the reference's loss; by those of `stages` too that its code names."""
        trained, frozen = self._split()
        images = as_model_images(reference, self.dtype)
        perturb: dict[str, jax.Array] = {}
        if self.is_named and stages:
            *_, found = jax.eval_shape(self._call, self.params, images)
            perturb = {
                name: jnp.zeros(found[name].shape, found[name].dtype)
                for name in stages
                if name in found and is_float(found[name])
            }

        def loss(params, perturb, floats):
            given = with_arrays(images, floats)
            return loss_of(reference, self._call({**params, **frozen}, given, perturb)[0][""])

        differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2))
        value, (by_params, by_stages, by_inputs) = differentiate(
            trained, perturb, float_arrays(images)
        )
        named = {name: np.asarray(array) for name, array in by_params.items()}
        staged = {name: np.asarray(by_stages[name]) for name in perturb}  # in the function's order
        return Gradients(float(value), named, staged, **_of_inputs(images, by_inputs))

    def trainable(self, reference: Reference) -> Trainable:
        """Its parameters, given to a transformation as a mapping by name."""
        trained, _ = self._split()
        leaves, tree = jax.tree.flatten(trained)
        names = jax.tree.leaves({name: name for name in trained})
        return Trainable(
            leaves,
            names,
            frozenset(i for i, name in enumerate(names) if name in reference.untrained),
            functools.partial(jax.tree.unflatten, tree),
        )

    def train(
        self, reference: Reference, step: Step | optax.GradientTransformation | None = None
    ) -> tuple[np.ndarray, Arrays]:
        _, frozen = self._split()
        images = as_model_images(reference, self.dtype)
        trainable = self.trainable(reference)

        def loss(leaves: Leaves, rest: None) -> tuple[jax.Array, None]:
            params = {**trainable.unflatten(leaves), **frozen}
            return loss_of(reference, self._call(params, images)[0][""]), rest

        losses, leaves, _ = _descend(loss, trainable, None, reference.optimizer, step)
        arrays = map(np.asarray, leaves)
        return losses, dict(zip(trainable.names, arrays, strict=True))


Side = ModelSide | FunctionSide


def _channels_first(images: Any) -> Any:
    if isinstance(images, Inputs):
        return images.turned(to_first=True)
    return images.transpose(0, 3, 1, 2) if images.ndim == 4 else images


def _of_inputs(images: Any, gradients: Mapping[str, jax.Array]) -> dict[str, Any]:
    """The fields of `Gradients` for the inputs, in PyTorch's layout."""
    if isinstance(images, Inputs):
        turned = images.map(lambda name, value: gradients.get(name, value)).turned(to_first=True)
        arrays = turned.arrays()
        return {"image": None, "inputs": {name: np.asarray(arrays[name]) for name in gradients}}
    return {"image": _channels_first(np.asarray(gradients[""])) if gradients else None}


def is_dropout(module: Any) -> bool:
    """Whether it hands its input on in eval mode."""
    return isinstance(module, Dropout | nnx.Dropout)
