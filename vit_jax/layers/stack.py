"""A stack of equal layers: run one by one, or scanned; rematerialised, or not."""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Key

REMAT = ("none", "blocks", "dots")


class PlainLayers(nnx.List):
    """Layers that `run_layers` applies one by one.

    Attributes:
      ends_fusion, row_major, gathered: see `run_layers`.
    """

    ends_fusion = False
    row_major = False
    gathered: jax.sharding.Sharding | None = None


class ScannedLayers(nnx.Module):
    """Layers of one structure kept as one, every array with a leading axis of their number.

    A scan over it compiles one layer whatever the depth. The arrays stand under the layers' own
    attribute names; `vit_jax.state_dict` names them layer by layer, as in the plain form.

    Attributes:
      ends_fusion, row_major, gathered: see `run_layers`.
    """

    ends_fusion = False
    row_major = False
    gathered: jax.sharding.Sharding | None = None

    def __init__(self, layers: Sequence[nnx.Module]):
        states = [nnx.state(layer) for layer in layers]
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *states)
        self.layer = nnx.merge(nnx.graphdef(layers[0]), stacked)
        self.depth = len(layers)


def stack_layers(layers: Sequence[nnx.Module], scan: bool) -> PlainLayers | ScannedLayers:
    """Returns the layers in the form that `run_layers` takes."""
    return ScannedLayers(layers) if scan and layers else PlainLayers(layers)


def is_layer_weight(model: nnx.Module) -> Callable[[tuple[Any, ...]], bool]:
    """Tells of a path of the model's state whether `run_layers` gathers what is there."""
    stacks = [
        path
        for path, module in nnx.iter_modules(model)
        if isinstance(module, PlainLayers | ScannedLayers)
    ]
    return lambda path: any(path[: len(stack)] == stack for stack in stacks)


def constrain(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """The arrays of `tree`, while JAX traces, where a sharding wants them; None: where they are."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def _rematerialise(call: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """Makes the backward pass of `call` compute its forward again ("dots": but for matmuls)."""
    if remat == "none":
        return call
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(call, policy=policy)


def run_layers(
    layers: PlainLayers | ScannedLayers,
    x: Float[Array, "batch *tokens dim"],
    *,
    drop_path_rates: Sequence[float],
    key: Key[Array, ""] | None,
    remat: str,
    context: Sequence[jax.Array] = (),
) -> Float[Array, "batch *tokens out_dim"]:
    """Applies each layer as `layer(x, *context, drop_path_rate=rate, key=key)`, in order.

    Static fields of the stack choose the form, see `vit_jax.layers.forms`:

    - `gathered`: weights that are divided between devices are placed so, layer by layer, and with
      `remat` once more in the backward pass, so that no device ever holds those of all layers. Left
      to itself the compiler may rather divide the work as the weights lie, and move activations.
    - `ends_fusion`: XLA writes each layer's output down, and its gradient, where it would compute
      them anew. Without it on a CPU the gradients of all residual branches down to a block are
      summed again for each use in this block: time that grows with the square of the depth. Needs
      the option of `compiler_options`: XLA for CPUs removes barriers before it fuses. `jax.pmap`
      takes no options.
    - `row_major`: each layer's output, and its gradient, lies in memory as its axes are written.
      XLA for GPUs may choose another order for the tokens of small models, and then every norm and
      activation is a kernel that transposes: of `cifar100_vit` 802 kernels a step and not 698. For
      one device alone: see `vit_jax.layers.forms.set_form`.

    Layer i gets the key folded with i, so the scanned and the rematerialised forms drop what the
    plain one drops.

    Args:
      layers: of `stack_layers`.
      x: tokens, in a row or as a map.
      drop_path_rates: one a layer.
      key: None means evaluation.
      remat: "none"; "blocks" keeps only the input of each layer for the backward pass; "dots" also
        the results of matmuls with weights.
      context: arrays that every layer is given, such as a mask of the tokens.
    """
    return _run(layers, x, drop_path_rates, key, remat, frozenset(), context)[0]


def collect_outputs(
    layers: PlainLayers | ScannedLayers,
    x: Float[Array, "batch tokens dim"],
    wanted: Collection[int],
    *,
    drop_path_rates: Sequence[float],
    key: Key[Array, ""] | None,
    remat: str,
    context: Sequence[jax.Array] = (),
) -> dict[int, Float[Array, "batch tokens _"]]:
    """Applies the layers as `run_layers` does and returns the outputs of the `wanted` ones.

    Layers after the last of them do not run.

    Args:
      wanted: numbers of layers from 0.
      layers, x, drop_path_rates, key, remat, context: of `run_layers`.
    """
    depth = max(wanted, default=-1) + 1
    if isinstance(layers, PlainLayers):
        first = PlainLayers(list(layers)[:depth])
        first.ends_fusion, first.row_major = layers.ends_fusion, layers.row_major
        first.gathered = layers.gathered
    else:
        first = copy.copy(layers)
        graphdef, state = nnx.split(layers.layer)
        first.layer = nnx.merge(graphdef, jax.tree.map(lambda stacked: stacked[:depth], state))
        first.depth = depth
    return _run(first, x, drop_path_rates[:depth], key, remat, frozenset(wanted), context)[1]


def _run(
    layers: PlainLayers | ScannedLayers,
    x: jax.Array,
    drop_path_rates: Sequence[float],
    key: jax.Array | None,
    remat: str,
    wanted: frozenset[int],
    context: Sequence[jax.Array],
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """The last output, and those of the wanted layers."""

    whole = layers.gathered

    def layer_key(i):
        return None if key is None else jax.random.fold_in(key, i)

    def finished(x):
        if layers.row_major:
            x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
        return jax.lax.optimization_barrier(x) if layers.ends_fusion else x

    if isinstance(layers, ScannedLayers):
        graphdef, state = nnx.split(layers.layer)
        rates = jnp.asarray(drop_path_rates, jnp.result_type(float))

        def body(x, per_layer):
            state, i = per_layer
            # A traced rate of 0 would draw a mask only to keep everything.
            rate = rates[i] if any(drop_path_rates) else 0.0
            layer = nnx.merge(graphdef, constrain(state, whole))
            x = layer(x, *context, drop_path_rate=rate, key=layer_key(i))
            x = finished(x) if layers.row_major else x
            return x, x if wanted else None

        numbered = (state, jnp.arange(layers.depth))
        x, stacked = jax.lax.scan(_rematerialise(body, remat), x, numbered)
        return x, {i: stacked[i] for i in wanted}

    outputs: dict[int, jax.Array] = {}
    for i, (layer, rate) in enumerate(zip(layers, drop_path_rates, strict=True)):
        if remat == "none" and whole is None:  # the module itself: its output can be captured
            x = finished(layer(x, *context, drop_path_rate=rate, key=layer_key(i)))
        else:
            graphdef, state = nnx.split(layer)

            def call(state, x, key, *context, graphdef=graphdef, rate=rate):
                run = nnx.merge(graphdef, constrain(state, whole))
                return run(x, *context, drop_path_rate=rate, key=key)

            x = finished(_rematerialise(call, remat)(state, x, layer_key(i), *context))
        if i in wanted:
            outputs[i] = x
    return x, outputs
