"""Multiply-accumulates of a forward pass, counted without running it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.extend import core

# They run each of their jaxprs once. What else holds one is refused if there is a product inside.
_ONCE = ("jit", "remat2", "custom_jvp_call", "custom_vjp_call")
# Products of a head's queries and keys that cuDNN's attention makes: forward, and backward, where
# it makes the weights once more.
CUDNN_FORWARD, CUDNN_BACKWARD = 2, 5
_OF_CUDNN = {
    "dot_product_attention_fwd_wrapper": CUDNN_FORWARD,
    "dot_product_attention_bwd_wrapper": CUDNN_BACKWARD,
}


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-accumulates of one call, by shapes alone: no array is made.

    Counted are products that are summed: matmuls, those of attention among them, and convolutions
    (with what they read of their padding). Not counted is what goes element by element or only
    sums: biases, norms, softmax, activations, the denominators of linear attention. Floating-point
    operations are about twice as many.

    Args:
      function: a model, which is counted as in eval mode and stays as it is, or a function. A model
        of shapes alone, from `nnx.eval_shape`, is as good as a built one.
      *args: arrays or `jax.ShapeDtypeStruct`s, such as one of shape (1, H, W, C).

    Returns:
      The count for the whole batch that is given.

    Raises:
      ValueError: a product stands where the number of its runs is not known, such as a while loop.
    """
    if isinstance(function, nnx.Module):
        graph, state = nnx.split(function)

        def call(state: Any, *args: Any) -> Any:
            model = nnx.merge(graph, state)
            model.eval()
            return model(*args)

        return _count(jax.make_jaxpr(call)(state, *args).jaxpr)
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def count_traced_macs(traced: jax.stages.Traced) -> int:
    """As `count_macs`, of what `jax.jit(...).trace(...)` has returned."""
    return _count(traced.jaxpr.jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(count_equation_macs(equation) for equation in jaxpr.eqns)


def count_equation_macs(equation: core.JaxprEqn) -> int:
    """As `count_macs`, of one equation of a jaxpr and all that is inside it."""
    name, params = equation.primitive.name, equation.params
    ins: list[Any] = [variable.aval for variable in equation.invars]
    outs: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return outs[0].size * math.prod(ins[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        features = ins[1].shape[params["dimension_numbers"].rhs_spec[0]]
        return outs[0].size * ins[1].size // features
    if name in _OF_CUDNN:  # queries (B, N, heads, head_dim), keys likewise
        return _OF_CUDNN[name] * ins[0].size * ins[1].shape[1]
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    inside = sum(_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value))
    if name == "scan":
        return params["length"] * inside
    if name == "shard_map":
        return params["mesh"].size * inside  # once on each device
    if inside and name not in _ONCE:
        raise ValueError(
            f"cannot tell how often the matmuls or convolutions inside {name!r} run; counted are "
            f"those inside of scan, cond, shard_map and {', '.join(_ONCE)}"
        )
    return inside


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    """The jaxprs that a parameter of an equation is or holds."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for part in value for jaxpr in _jaxprs(part)]
    return []
