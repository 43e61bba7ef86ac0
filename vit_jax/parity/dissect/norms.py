"""Other normalizations: other axes and moments, epsilon elsewhere."""

from collections.abc import Iterator
from typing import Any

from vit_jax.parity.dissect.arguments import Change, by_name, turned
from vit_jax.parity.dissect.program import Apply, Call
from vit_jax.parity.torch_run import import_torch

NORMS = frozenset(("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"))


_BATCH_NORM = (
    *("input", "running_mean", "running_var", "weight", "bias"),
    *("training", "momentum", "eps"),
)
_NORM_ARGUMENTS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": _BATCH_NORM,
    "instance_norm": _BATCH_NORM,
}


def norms_of(call: Call, arguments: dict[str, tuple[str | int, Any]]) -> Iterator[Change]:
    """Other normalizations with the same weights: other axes, moments, places of epsilon."""
    name = call.site.function
    last = name in ("layer_norm", "rms_norm")
    for text, options in (
        ("without the mean", {"center": False}),
        ("with the mean taken off", {"center": True}),
        ("with the variance over n - 1", {"correction": 1}),
        ("with epsilon added to the deviation", {"outside": True}),
        ("over all axes but the first", {"axes": "rest"}),
        ("over axis 1", {"axes": (1,)}),
        ("over axis -1", {"axes": (-1,)}),
        ("over axes (1, 2)", {"axes": (1, 2)}),
        ("over the axes of an image", {"axes": "space"}),
        ("over the batch", {"axes": (0,)}),
        *(
            (
                ("of groups that take every so many-th channel", {"axes": "strided"}),
                ("of each place alone", {"axes": "places"}),
            )
            if name == "group_norm"
            else ()
        ),
    ):
        fault = "norm_axis" if "axes" in options else name
        if options.get("center") is (name != "rms_norm"):
            continue
        apply = _normalized(last, name, **options)
        yield Change(fault, f"{name} {text}", apply)
    if name == "batch_norm":
        text = "batch_norm by the running statistics that this batch has just updated"
        yield Change("batch_norm", text, _by_updated)
    if name == "rms_norm":
        where, _ = arguments.get("weight", ("weight", None))
        yield Change("rms_norm", "rms_norm with 1 + weight", turned(where, lambda w: 1 + w))


def _by_updated(function: Any, args: tuple, kwargs: dict) -> Any:
    """As Equinox does by default, in train mode."""
    given = by_name(_BATCH_NORM, args, kwargs)
    x, share = given["input"], given["momentum"]
    along = (0, *range(2, x.ndim))
    batch = x.mean(along), x.var(along, correction=0)
    running = given["running_mean"], given["running_var"]
    mean, var = (old + share * (new - old) for old, new in zip(running, batch, strict=True))
    return function(**{**given, "running_mean": mean, "running_var": var, "training": False})


def _normalized(
    last: bool,
    name: str,
    axes: Any = None,
    center: Any = None,
    correction: Any = 0,
    outside: Any = False,
) -> Apply:
    torch = import_torch()
    centered = name != "rms_norm" if center is None else center

    def apply(function: Any, args: tuple, kwargs: dict) -> Any:
        given = by_name(_NORM_ARGUMENTS[name], args, kwargs)
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        eps = given.get("eps", 1e-5)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        del function
        shape, along = x.shape, axes
        if name == "group_norm" and axes in (None, "places"):
            x = x.reshape(shape[0], given["num_groups"], -1, *shape[2:])
            along = tuple(range(2, x.ndim)) if axes is None else (2,)
        elif axes == "strided":
            x = x.reshape(shape[0], -1, given["num_groups"], *shape[2:])
            along = (1, *range(3, x.ndim))
        elif name == "batch_norm" and axes is None:
            along = (0, *range(2, x.ndim))
        elif axes is None:
            along = tuple(range(-len(given.get("normalized_shape", (1,))), 0))
        elif axes == "rest":
            along = tuple(range(1, x.ndim))
        elif axes == "space":
            along = tuple(range(2, x.ndim)) if not last else tuple(range(1, x.ndim - 1))
        mean = x.mean(along, keepdim=True)
        variance = (
            x.var(along, keepdim=True, correction=correction)
            if centered
            else x.pow(2).mean(along, keepdim=True)
        )
        root = variance.sqrt() + eps if outside else torch.sqrt(variance + eps)
        x = ((x - mean if centered else x) / root).reshape(shape)
        stand = (
            (-1, *[1] * (x.ndim - 2))
            if not last
            else tuple(weight.shape if weight is not None else ())
        )
        if weight is not None:
            x = x * weight.reshape(stand)
        return x if bias is None else x + bias.reshape(stand)

    return apply
