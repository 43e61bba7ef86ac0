"""The fields of a model: frozen dataclasses that check themselves.

Each field stands once, with its default, its check and its meaning. A design inherits the common
ones and restates a field only to give it another default: the check comes with the name.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.layers.checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_rate,
    to_pair,
)
from vit_jax.layers.dropout import drop_path_rates
from vit_jax.layers.patch_embed import PATCHIFY
from vit_jax.layers.stack import REMAT

Size = int | Sequence[int]
Check = Callable[..., Any]

_DTYPES = tuple(jnp.dtype(name) for name in ("float32", "bfloat16", "float16", "float64"))


def checked(default: Any, check: Check, *, free: bool = False, **bounds: Any) -> Any:
    """A dataclass field with a check.

    Args:
      default: of the field.
      check: one of `vit_jax.layers.checks`: `check(name, value, **bounds)`.
      free: weights may be loaded into a model with another value: it does not change what the model
        computes in eval mode, or the weights can be adapted to it.
    """
    check = functools.partial(check, **bounds) if bounds else check
    return dataclasses.field(default=default, metadata={"check": check, "free": free})


def optional(default: Any, check: Check, *, free: bool = False, **bounds: Any) -> Any:
    """As `checked`, of a field that may be None."""

    def check_unless_none(name: str, value: Any) -> Any:
        return None if value is None else check(name, value, **bounds)

    return checked(default, check_unless_none, free=free)


def check_size(name: str, value: Any) -> int | tuple[int, int]:
    """Returns a size in pixels: one number where both sides are equal, else (height, width)."""
    height, width = to_pair(name, value)
    return height if height == width else (height, width)


def check_widths(name: str, value: Any) -> tuple[int, ...]:
    """Returns a sequence of at least one positive int as a tuple."""
    widths = tuple(value) if np.ndim(value) else ()
    if not widths:
        raise ValueError(f"{name} must be a sequence of at least one int, got {value!r}")
    return tuple(check_int(name, width, least=1) for width in widths)


def check_dtype(name: str, dtype: Any) -> str:
    """Returns the name of a floating dtype given as such or by name.

    Raises:
      ValueError: it is not a floating type, or float64 while JAX's x64 mode is off.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    # NumPy takes None for float64.
    if dtype is None or found is None or found not in _DTYPES:
        raise ValueError(f"{name} must be float32, bfloat16, float16 or float64, got {dtype!r}")
    if found == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{name} float64 needs JAX's x64 mode: set JAX_ENABLE_X64=1, or give another {name}"
        )
    return found.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """The fields of every design.

    Attributes:
      img_size: pixels, one number or (height, width).
      in_chans: channels of the images.
      num_classes: width of the logits; 0 makes the last Linear the identity.
      embed_dim: width of a token.
      num_heads: heads of each block, a divisor of `embed_dim`.
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout after the positions, the attention's output and in the MLP.
      attn_drop_rate: dropout on the attention weights.
      drop_path_rate: stochastic depth of the last block; linear from 0 at the first.
      head_drop_rate: dropout before the last Linear.
      remat: "none", "blocks" or "dots": see `vit_jax.layers.stack.run_layers`.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    img_size: Size = checked(224, check_size, free=True)
    in_chans: int = checked(3, check_int, free=True, least=1)
    num_classes: int = checked(1000, check_int, free=True, least=0)
    embed_dim: int = checked(768, check_int, least=1)
    num_heads: int = checked(12, check_int, least=1)
    norm_eps: float = checked(1e-6, check_number, above=0)
    drop_rate: float = checked(0.0, check_rate, free=True)
    attn_drop_rate: float = checked(0.0, check_rate, free=True)
    drop_path_rate: float = checked(0.0, check_rate, free=True)
    head_drop_rate: float = checked(0.0, check_rate, free=True)
    remat: str = checked("none", check_choice, free=True, choices=REMAT)
    dtype: Any = checked("float32", check_dtype, free=True)
    param_dtype: Any = checked("float32", check_dtype, free=True)

    def __post_init__(self) -> None:
        for name, facts in _metadata(type(self)).items():
            object.__setattr__(self, name, facts["check"](name, getattr(self, name)))

    @classmethod
    def is_free(cls, name: str) -> bool:
        """Whether weights may be loaded into a model with another value of a field: see `checked`.

        An unknown field is not compared, and so free.
        """
        return _metadata(cls).get(name, {"free": True})["free"]

    def drop_rates(self) -> tuple[float, ...]:
        """The rates of all dropouts but stochastic depth."""
        return (self.drop_rate, self.attn_drop_rate, self.head_drop_rate)

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of each layer of the stack."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig(DesignConfig):
    """The fields of a design whose blocks are equal.

    Attributes:
      depth: blocks.
      scan_layers: keeps the blocks stacked and scans over them.
    """

    depth: int = checked(12, check_int, least=0)
    scan_layers: bool = checked(False, check_bool, free=True)

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of each block: linear from 0 to `drop_path_rate`."""
        return drop_path_rates(self.drop_path_rate, self.depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchesConfig(StackConfig):
    """The fields of a design that cuts its images into patches.

    Attributes:
      patch_size: pixels, one number or (height, width).
      patchify: "conv" or "unfold" (im2col), the same numbers.
    """

    patch_size: Size = checked(16, check_size)
    patchify: str = checked("conv", check_choice, free=True, choices=PATCHIFY)


def other_scale(config: Any) -> float | None:
    """The `qk_scale` of a config; None, its default, also where that value is given."""
    head_dim = config.embed_dim // config.num_heads
    return None if config.qk_scale == max(head_dim, 1) ** -0.5 else config.qk_scale


@functools.cache
def _metadata(kind: type[DesignConfig]) -> dict[str, Mapping[str, Any]]:
    """What `checked` says of each field: its own, or of the class that it is inherited from."""
    found = {}
    for name in (field.name for field in dataclasses.fields(kind)):
        for parent in kind.__mro__:
            field = vars(parent).get("__dataclass_fields__", {}).get(name)
            if field is not None and "check" in field.metadata:
                found[name] = field.metadata
                break
    return found
