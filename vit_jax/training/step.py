"""The training step and the evaluation step: pure functions, compiled for a mesh."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.data.augment import example_keys
from vit_jax.layers.forms import compiler_options
from vit_jax.layers.masking import patch_noise
from vit_jax.layers.stack import constrain
from vit_jax.training.distillation import TaughtStep, distillation_loss
from vit_jax.training.ema import update_average
from vit_jax.training.mesh import AXES, batch_sharding, block_sharding, replicated
from vit_jax.training.metrics import AnySums, Collected, EvalSums, OwnSums, Sums
from vit_jax.training.mixing import Mixing, mirrored, mix_batch
from vit_jax.training.own import augmented
from vit_jax.training.row_keys import key_of_rows
from vit_jax.training.state import Arrays, TrainState, split_arrays

if TYPE_CHECKING:
    from vit_jax.training.run import Run

Batch = dict[str, Any]
# Each returns the new state, and the loss of the batch, which tells when the step is done.
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]
# (state, block of batches, how many of them) -> the new state, and the loss of each batch.
TrainLoop = Callable[[TrainState, Batch, np.int32], tuple[TrainState, jax.Array]]
# (state, batch, sums) -> sums with the batch's added.
EvalStep = Callable[[TrainState, Batch, EvalSums], EvalSums]

_DROPOUT, _AUGMENT, _MIX, _OWN = 0, 1, 2, 3
_DEVICES = "devices"


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled functions of a run.

    Attributes:
      init: makes the state at step 0.
      train, train_block, eval: compiled when first called.
      are_finite: whether all parameters are; likewise.
    """

    init: Callable[[], TrainState]
    train: TrainStep
    train_block: TrainLoop
    eval: EvalStep
    are_finite: Callable[[Arrays], jax.Array]


def make_steps(run: "Run") -> Steps:
    """The compiled functions of a run; nothing is compiled yet."""
    return Steps(
        init=jax.jit(run.initial_state, out_shardings=run.shardings),
        train=pmap_train_step(run) if run.config.parallel == "pmap" else jit_train_step(run),
        train_block=jit_train_loop(run),
        eval=make_eval_step(run),
        are_finite=jax.jit(
            _all_finite, in_shardings=(run.shardings.params,), out_shardings=replicated(run.mesh)
        ),
    )


def augment_key(seed: int) -> jax.Array:
    """What the keys of `example_keys` derive from in a run of this seed."""
    return jax.random.fold_in(jax.random.key(seed), _AUGMENT)


def _key_of_step(seed: int, use: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), step)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _at_asked_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a run whose matmuls have the precision that the run asks for."""

    @functools.wraps(function)
    def call(run: "Run", *arguments: Any, **named: Any) -> Any:
        asked = run.config.matmul_precision
        with jax.default_matmul_precision(asked) if asked else contextlib.nullcontext():
            return function(run, *arguments, **named)

    return call


@_at_asked_precision
def _apply(
    run: "Run",
    graph: nnx.GraphDef,
    params: Arrays,
    frozen: Arrays,
    images: jax.Array,
    rngs: nnx.Rngs | None = None,
    noise: jax.Array | None = None,
) -> tuple[Any, Arrays | None]:
    """The model's output, and its other variables where the call has moved them.

    Weights outside of its layers are gathered here, the others there. With `noise` the output is
    the loss of each image's hidden patches.
    """
    if run.gathered is not None:
        params, frozen = (_gathered(run, arrays) for arrays in (params, frozen))
    model = nnx.merge(graph, params, frozen)
    if noise is None:
        outputs = model(images, rngs=rngs)
    else:
        outputs = model.reconstruction_losses(images, noise, rngs=rngs)
    if not run.has_statistics:
        return outputs, None
    return outputs, split_arrays(model, run.trained)[1]


def _gathered(run: "Run", arrays: Arrays) -> Arrays:
    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_of_layers = run.is_layer_weight(tuple(key.key for key in path))
        return leaf if is_of_layers else constrain(leaf, run.gathered)

    return jax.tree_util.tree_map_with_path(gather, arrays)


def _keys(run: "Run", step: jax.Array, batch: Batch) -> jax.Array:
    return example_keys(augment_key(run.config.seed), step // run.steps_per_epoch, batch["index"])


def _pixels(run: "Run", step: jax.Array, batch: Batch) -> jax.Array:
    """The batch's images, augmented as far as they are uint8."""
    keys, images = _keys(run, step, batch), batch["image"]
    if run.own.augment is not None:
        own_keys = jax.vmap(lambda key: jax.random.fold_in(key, _OWN))(keys)
        images = augmented(run.own.augment, own_keys, images)
    return run.prepare_train.pixels(keys, images, batch.get("crop"))


def _prepared(run: "Run", step: jax.Array, batch: Batch) -> jax.Array:
    """The batch's images, augmented and normalised."""
    return run.prepare_train.finished(_keys(run, step, batch), _pixels(run, step, batch))


def _noise(run: "Run", step: jax.Array | int, batch: Batch) -> jax.Array | None:
    """What decides which patches of the images are hidden; None where none are."""
    if not run.reconstructs:
        return None
    num_patches = math.prod(run.model.token_grid(*run.model.input_size))
    return patch_noise(run.config.seed, step, batch["index"], num_patches)


def _sums(run: "Run", losses: jax.Array, prediction: Any, batch: Batch) -> AnySums:
    """The metrics of a batch."""
    if run.figures is None:
        return Sums.of_batch(losses, prediction, batch["label"], batch["mask"])
    found = {name: measure(prediction, batch["label"]) for name, measure in run.figures.items()}
    return OwnSums.of_batch(losses, found, batch["mask"], run.objective.roots)


def _divided(batch: Batch, parts: int) -> Batch:
    """The batch in parts, as a leading axis.

    Part i is rows i, i + parts, ... of the batch, so that every device has rows of its own in each
    part and none moves.
    """
    return {
        name: value.reshape(-1, parts, *value.shape[1:]).swapaxes(0, 1)
        for name, value in batch.items()
    }


def _mixed(run: "Run", mixing: Mixing, axis: str | None, step: jax.Array, batch: Batch) -> Batch:
    """The batch with its images ready and mixed, and with "target", their shares of the classes.

    Partners may lie in any part of an accumulated batch, so that this is done before it is divided:
    its images are kept whole as floats, where without mixing those of one part are. "label" becomes
    the class of the larger share, against which accuracy is counted.
    """
    parts = run.config.accumulation_steps
    if parts > 1:
        pixels = jax.lax.map(lambda part: _pixels(run, step, part), _divided(batch, parts))
        pixels = pixels.swapaxes(0, 1).reshape(-1, *pixels.shape[2:])
    else:
        pixels = _pixels(run, step, batch)
    finished, partners = run.prepare_train.finished, None
    if run.mesh.size > 1:  # partners lie on other devices, and are finished on both: a byte a value
        index, labels, other = (mirrored(x, axis) for x in (batch["index"], batch["label"], pixels))
        partners = finished(_keys(run, step, {"index": index}), other), labels
    images = finished(_keys(run, step, batch), pixels)
    key = _key_of_step(run.config.seed, _MIX, step)
    images, targets = mix_batch(key, images, batch["label"], mixing, partners)
    labels = jnp.argmax(targets, axis=-1).astype(batch["label"].dtype)
    return batch | {"image": images, "target": targets, "label": labels}


def _gradients(
    run: "Run",
    state: TrainState,
    batch: Batch,
    dropout_key: jax.Array,
    teacher: Arrays | None,
) -> tuple[jax.Array, tuple[AnySums, Arrays | None], Arrays]:
    """The loss of a batch, its metrics, what the model moved, and the gradients.

    `teacher`: its arrays.
    """
    if run.mixing is None:
        images, targets = _prepared(run, state.step, batch), batch["label"]
    else:
        images, targets = batch["image"], batch["target"]
    taught = None
    if run.teacher is not None:
        assert teacher is not None
        taught = run.teacher.logits(teacher, images)

    def loss_of(params: Arrays) -> tuple[jax.Array, tuple[AnySums, Arrays | None]]:
        rngs = nnx.Rngs(dropout=dropout_key)
        noise = _noise(run, state.step, batch)
        logits, moved = _apply(run, run.train_graph, params, state.frozen, images, rngs, noise)
        if run.teacher is None or taught is None:
            losses, prediction = run.objective.losses(logits, targets, train=True)
        else:
            distillation, smoothing = run.teacher.config, run.config.loss.label_smoothing
            losses, prediction = distillation_loss(logits, targets, taught, distillation, smoothing)
        return losses.mean(), (_sums(run, losses, prediction, batch), moved)

    (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return loss, found, gradients


def _accumulated_gradients(
    run: "Run",
    state: TrainState,
    batch: Batch,
    dropout_key: jax.Array,
    first: Any,
    teacher: Arrays | None,
) -> tuple[jax.Array, AnySums, Arrays]:
    """As `_gradients`, computed part by part: memory for the activations of one part.

    `first` is the batch's own first row in the global batch.
    """
    parts = run.config.accumulation_steps
    rows = batch["label"].shape[0] // parts
    divided = _divided(batch, parts)

    def of_part(part: Batch, key: jax.Array) -> tuple[jax.Array, AnySums, Arrays]:
        loss, (sums, _), gradients = _gradients(run, state, part, key, teacher)
        return loss, sums, gradients

    def add_part(total: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        number, part = numbered
        key = key_of_rows(dropout_key, first + number, rows, parts)
        return jax.tree.map(jnp.add, total, of_part(part, key)), None

    shapes = jax.eval_shape(lambda: of_part(jax.tree.map(lambda x: x[0], divided), dropout_key))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (loss, sums, gradients), _ = jax.lax.scan(add_part, nothing, (jnp.arange(parts), divided))
    return loss / parts, sums, jax.tree.map(lambda gradient: gradient / parts, gradients)


@_at_asked_precision
def _train_step(
    run: "Run",
    axis: str | None,
    state: TrainState,
    batch: Batch,
    teacher: Arrays | None = None,
) -> tuple[TrainState, jax.Array]:
    """One update. With `axis`, `batch` is this device's part and the update is that of them all."""
    dropout_key = _key_of_step(run.config.seed, _DROPOUT, state.step)
    if run.mixing is not None:
        batch = _mixed(run, run.mixing, axis, state.step, batch)
    rows = batch["label"].shape[0]
    first = 0 if axis is None else rows * jax.lax.axis_index(axis)
    moved = None
    if run.config.accumulation_steps > 1:
        loss, sums, gradients = _accumulated_gradients(
            run, state, batch, dropout_key, first, teacher
        )
    else:
        if axis is not None:
            dropout_key = key_of_rows(dropout_key, first, rows)
        elif run.platform == "cpu" and run.mesh.size == 1:
            dropout_key = key_of_rows(dropout_key, 0, 1)  # draws the same, faster
        loss, (sums, moved), gradients = _gradients(run, state, batch, dropout_key, teacher)
    if axis is not None:
        loss, gradients = jax.lax.pmean(loss, axis), _averaged(run, gradients, axis)
        sums = jax.lax.psum(sums, axis)
    updates, opt_state = run.optimizer.update(gradients, state.opt_state, state.params)
    params = cast(Arrays, optax.apply_updates(state.params, updates))
    step = state.step + 1
    ema = None if state.ema is None else update_average(run.config.ema, state.ema, params, step)
    is_finite = jnp.isfinite(loss)
    if run.config.optimizer.gradient_clip_norm is not None:
        is_finite &= jnp.isfinite(run.gradient_norm(gradients))  # the clipping's: computed once
    first = jnp.where(is_finite | (state.nonfinite_step > 0), state.nonfinite_step, step)
    new_state = TrainState(
        step=step,
        params=params,
        frozen=state.frozen if moved is None else moved,
        opt_state=opt_state,
        sums=cast(Any, state.sums) + sums,
        nonfinite_step=first,
        ema=ema,
    )
    return new_state, loss


def _averaged(run: "Run", gradients: Arrays, axis: str) -> Arrays:
    """The mean of all devices' gradients, added up in the type that the config says."""
    wanted = run.config.training.reduce_dtype

    def average(gradient: jax.Array) -> jax.Array:
        kind = gradient.dtype if wanted == "auto" else wanted
        return jax.lax.pmean(gradient.astype(kind), axis).astype(gradient.dtype)

    return jax.tree.map(average, gradients)


def _update(run: "Run", state: TrainState, batch: Batch, *taught: Any) -> Any:
    """One update of the whole batch, for `jax.jit`, which divides the work as the arrays lie.

    Where the run says how gradients are exchanged, each device has its part, as with pmap.
    """
    if not run.reduces_by_hand:
        return _train_step(run, None, state, batch, *taught)
    whole, rows = P(), P(AXES[0])  # the other axis has one device
    by_device = jax.shard_map(
        functools.partial(_train_step, run, AXES[0]),
        mesh=run.mesh,
        in_specs=(whole, rows, *(whole for _ in taught)),
        out_specs=whole,
        check_vma=False,
    )
    return by_device(state, batch, *taught)


def _compiled(run: "Run", update: Callable[..., Any], *places: Any) -> Any:
    """A jitted update that donates its state, and gives it its teacher's arrays where it has one.

    Args:
      run: whose state it is.
      update: (state, ..., arrays of the teacher if there is one) -> the new state, and losses.
      *places: where the arguments between these lie.
    """
    whole, teacher = replicated(run.mesh), run.teacher
    step = jax.jit(
        update,
        in_shardings=(run.shardings, *places, *([whole] if teacher else [])),
        out_shardings=(run.shardings, whole),
        donate_argnums=0,
        compiler_options=compiler_options(run.platform),
    )
    return TaughtStep(step, teacher, whole) if teacher else step


def jit_train_step(run: "Run") -> TrainStep:
    """One plain jitted step: the compiler divides the work as the arrays lie. Donates the state."""
    return _compiled(run, functools.partial(_update, run), batch_sharding(run.mesh))


def jit_train_loop(run: "Run") -> TrainLoop:
    """The same step in a compiled loop over the first batches of a block. Donates the state.

    How many there are is no part of the program: any number of updates is made by one program, and
    each of them by the same instructions, so that no number of updates depends on the split.
    """

    def loop(state: TrainState, block: Batch, count: jax.Array, *taught: Any) -> Any:
        def update(number: jax.Array, carry: Any) -> Any:
            state, losses = carry
            batch = jax.tree.map(lambda rows: rows[number], block)
            # An update is compiled by itself, whatever the size of the block.
            state, loss = _update(run, state, jax.lax.optimization_barrier(batch), *taught)
            return state, losses.at[number].set(loss.astype(losses.dtype))

        losses = jnp.zeros(len(block["mask"]), state.sums.loss.dtype)
        return jax.lax.fori_loop(0, count, update, (state, losses))

    return _compiled(run, loop, block_sharding(run.mesh), replicated(run.mesh))


def pmap_train_step(run: "Run") -> TrainStep:
    """The same step, written for one device and mapped: gradients are averaged by hand.

    State and loss are whole on each device and look like one array, so that all else is as with
    `jit_train_step`. Donates the state.
    """
    teacher, mesh = run.teacher, run.mesh
    mapped: Any = jax.pmap(
        lambda state, batch, *taught: _train_step(run, _DEVICES, state, batch, *taught),
        axis_name=_DEVICES,
        in_axes=(None, 0, *([None] if teacher else [])),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )

    whole, alone = replicated(mesh), jax.process_count() == 1
    # How pmap itself places what it returns: given otherwise, the second step compiles anew.
    returned = NamedSharding(Mesh(mesh.devices.reshape(-1), (_DEVICES,)), P())

    def of_all_processes(leaf: jax.Array) -> jax.Array:
        # Of many processes each gets its own copies; together they are one array. Nothing moves.
        copies = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, whole, copies)

    def step(state: TrainState, batch: Batch, *taught: Any) -> tuple[TrainState, jax.Array]:
        parts = {
            name: value.reshape(mesh.size, -1, *value.shape[1:]) for name, value in batch.items()
        }
        if alone and state.step.sharding != returned:
            state = jax.device_put(state, returned)
        result = mapped(state, parts, *taught)
        return result if alone else jax.tree.map(of_all_processes, result)

    return TaughtStep(step, teacher, returned if alone else whole) if teacher else step


def make_eval_step(run: "Run") -> EvalStep:
    """The metrics of one batch in eval mode, padding left out.

    It donates nothing: the sums after a batch tell later when it was done.
    """

    def step(params: Arrays, frozen: Arrays, batch: Batch, sums: Any) -> tuple[AnySums, Any]:
        images = run.prepare_eval(batch["image"])
        noise = _noise(run, 0, batch)  # the same at every evaluation
        outputs, _ = _apply(run, run.eval_graph, params, frozen, images, noise=noise)
        losses, prediction = run.objective.losses(outputs, batch["label"], train=False)
        batch_sums: Any = _sums(run, losses, prediction, batch)
        seen = (prediction, batch["label"], batch["mask"]) if of_all else ()
        return sums + batch_sums, seen

    of_all = run.objective.of_all
    whole, shardings = replicated(run.mesh), run.shardings
    compiled = jax.jit(
        step,
        in_shardings=(shardings.params, shardings.frozen, batch_sharding(run.mesh), whole),
        out_shardings=whole,
        compiler_options=compiler_options(run.platform),
    )

    def add(state: TrainState, batch: Batch, sums: EvalSums) -> EvalSums:
        before = sums if isinstance(sums, Collected) else None
        found, seen = compiled(state.params, state.frozen, batch, before.sums if before else sums)
        if of_all is None:
            return found
        return Collected(found, of_all, (*(before.seen if before else ()), seen))

    return add
