"""Checks of plain arguments: each returns the value in its plain type, or says what was wanted."""

import math
import numbers
import operator
from typing import Any

import numpy as np

_LARGEST = 2**31 - 1  # of a size, as XLA counts most of them


def check_int(name: str, value: Any, *, least: int) -> int:
    """Returns a whole number of any integer type; a bool is none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    if number > _LARGEST:
        raise ValueError(f"{name} must be an int of at most {_LARGEST:,}, got {value!r}")
    return number


def hidden_width(dim: int, mlp_ratio: float, of: str = "embed_dim") -> int:
    """Returns the hidden width of an MLP; `of`: the field that its input's width is."""
    return check_int(f"int({of} * mlp_ratio)", int(dim * mlp_ratio), least=1)


def _real(value: Any) -> float:
    """The value as a float; NaN, which no bound admits, where it is no real number."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if is_real else math.nan


def check_number(name: str, value: Any, *, above: float = -math.inf) -> float:
    """Returns a finite real number above a bound."""
    number = _real(value)
    if not math.isfinite(number) or not number > above:
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
    return number


def check_rate(name: str, value: Any) -> float:
    """Returns a probability of dropping: at least 0 and below 1."""
    rate = _real(value)
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    return rate


def check_bool(name: str, value: Any) -> bool:
    """Returns True or False; what is merely truthy is refused."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Returns one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def to_pair(name: str, value: Any) -> tuple[int, int]:
    """Returns (height, width) of a size given as one number of pixels or as two."""
    try:
        sides = tuple(value) if np.ndim(value) else (value, value)
        height, width = (check_int(name, side, least=1) for side in sides)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be a positive int or (height, width), got {value!r}"
        ) from None
    return height, width
