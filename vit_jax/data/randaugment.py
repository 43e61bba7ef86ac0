"""RandAugment (Cubuk et al., arXiv 1909.13719) with the meaning of timm's `rand-m9-mstd0.5-inc1`.

What happens to an image is drawn first, for all images alike; then it is done in one of two forms
that give the same pixels. The 15 operations are of three families: an affine map, a table of bytes,
a blend with another image. A batch goes through one pass of each, where an operation that was not
drawn is the identity; image by image, only the family drawn is computed. Of the first form TPUs
have a variant, which finds bytes in tables by matrix products.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt8

from vit_jax.data import affine, tables
from vit_jax.data.color import adjust_saturation, adjust_sharpness, blend, grayscale, smooth

OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
MAX_MAGNITUDE = 10.0

_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_NOTHING = len(OPERATIONS)
_AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_POINT = ("invert", "posterize", "solarize", "solarize_add", "brightness")

_CUBIC = {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}  # probability
_ROTATION_DEGREES, _SHEAR, _TRANSLATION = 30.0, 0.3, 0.45  # at the largest magnitude
_SECTIONS = (
    "mM (magnitude), mstdS (its deviation), nN (operations), pP (probability), incI (0 or 1)"
)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Settings of RandAugment.

    Attributes:
        magnitude: from 0 to 10.
        num_ops: operations drawn for an image, with replacement.
        probability: with which each drawn one is done.
        magnitude_std: of the normal noise on each magnitude, which is then clipped to 0 to 10.
        increasing: whether every operation gets stronger with the magnitude.
        interpolation: of the geometric operations: "bilinear", "bicubic", or "random": either.
    """

    magnitude: float = 10.0
    num_ops: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    increasing: bool = False
    interpolation: str = "random"


class Drawn(NamedTuple):
    """One operation for one image.

    Attributes:
        operation: its position in `OPERATIONS`; their number for none.
        magnitude: from 0 to 10, noise included.
        sign: -1 or 1, for the operations of two directions.
        cubic: whether a geometric one interpolates bicubically, or else bilinearly.
    """

    operation: Int32[Array, "*N"]
    magnitude: Float32[Array, "*N"]
    sign: Float32[Array, "*N"]
    cubic: Bool[Array, "*N"]


def parse_rand_augment(text: str, interpolation: str = "random") -> RandAugment:
    """Settings from a string such as `rand-m9-mstd0.5-inc1`; what it leaves out is as in timm.

    Raises:
        ValueError: it is no such string, a number is out of range, or another interpolation.
    """
    if interpolation not in _CUBIC:
        raise ValueError(f"interpolation: wanted one of {', '.join(_CUBIC)}, got {interpolation!r}")
    wanted = f'rand_augment: wanted "rand" and, each after a hyphen, any of {_SECTIONS}'
    first, *sections = text.split("-")
    if first != "rand":
        raise ValueError(f"{wanted}, such as rand-m9-mstd0.5-inc1; got {text!r}")
    found: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", section)
        if match is None or match[1] in found:
            why = "given twice" if match else "not one of them"
            raise ValueError(f"{wanted}; got {text!r}, where {section!r} is {why}")
        found[match[1]] = float(match[2])
    limits = {"m": MAX_MAGNITUDE, "n": 15, "p": 1, "mstd": 100, "inc": 1}
    for name, value in found.items():
        whole = name in ("n", "inc")
        if value > limits[name] or (whole and value != int(value)) or (name == "n" and value < 1):
            kind = "a whole number" if whole else "a number"
            low = 1 if name == "n" else 0
            raise ValueError(
                f"rand_augment: wanted {kind} from {low} to {limits[name]:g} after {name!r}, got "
                f"{value:g} in {text!r}"
            )
    return RandAugment(
        magnitude=found.get("m", MAX_MAGNITUDE),
        num_ops=int(found.get("n", 2)),
        probability=found.get("p", 0.5),
        magnitude_std=found.get("mstd", 0.0),
        increasing=bool(found.get("inc", 0)),
        interpolation=interpolation,
    )


def draw(key: Key[Array, ""], settings: RandAugment) -> Drawn:
    """The operations for one image, each field (num_ops,)."""
    shape = (settings.num_ops,)
    which, whether, noise, direction, kernel = jax.random.split(key, 5)
    operation = jax.random.randint(which, shape, 0, len(OPERATIONS), jnp.int32)
    done = jax.random.bernoulli(whether, np.float32(settings.probability), shape)
    deviation = settings.magnitude_std * jax.random.normal(noise, shape, jnp.float32)
    return Drawn(
        operation=jnp.where(done, operation, _NOTHING),
        magnitude=jnp.clip(settings.magnitude + deviation, 0.0, MAX_MAGNITUDE),
        sign=jnp.where(jax.random.bernoulli(direction, np.float32(0.5), shape), 1.0, -1.0).astype(
            jnp.float32
        ),
        cubic=jax.random.bernoulli(kernel, np.float32(_CUBIC[settings.interpolation]), shape),
    )


def rand_augment(
    keys: Key[Array, "B"],
    images: UInt8[Array, "B H W 3"],
    settings: RandAugment,
    fill: Sequence[int],
    *,
    one_by_one: bool = False,
    by_products: bool = False,
) -> UInt8[Array, "B H W 3"]:
    """RandAugment of a batch.

    Args:
        keys: one an image.
        images: the batch.
        settings: see there.
        fill: colour of what a geometric operation brings in from outside.
        one_by_one, by_products: see `apply`.
    """
    drawn = jax.vmap(lambda key: draw(key, settings))(keys)
    forms = {"one_by_one": one_by_one, "by_products": by_products}
    return apply(images, drawn, settings.increasing, fill, **forms)


def apply(
    images: UInt8[Array, "B H W 3"],
    drawn: Drawn,
    increasing: bool,
    fill: Sequence[int],
    *,
    one_by_one: bool = False,
    by_products: bool = False,
) -> UInt8[Array, "B H W 3"]:
    """Does what was drawn, one operation after another.

    Args:
        images: the batch.
        drawn: fields (B, N).
        increasing: see `RandAugment`.
        fill: see `rand_augment`.
        one_by_one: image after image, each operation in a branch of its own, which suits a CPU; or
            all images at once through every family, which suits an accelerator.
        by_products: in the second form, tables and histograms by matrix products, which suits a
            TPU.
    """
    plans = jax.vmap(jax.vmap(lambda one: _plan(one, increasing, *images.shape[1:3])))(drawn)

    def augment_one(image: UInt8[Array, "H W 3"], plan: "_Plan") -> UInt8[Array, "H W 3"]:
        do = _do_branch if one_by_one else functools.partial(_do_passes, by_products=by_products)
        return jax.lax.scan(lambda image, step: (do(image, step, fill), None), image, plan)[0]

    if one_by_one:
        return jax.lax.map(lambda both: augment_one(*both), (images, plans))
    return jax.vmap(augment_one)(images, plans)


class _Plan(NamedTuple):
    """A drawn operation as its family needs it, the identity for the other families."""

    operation: Int32[Array, "*N"]
    affine_map: Int32[Array, "*N 6"]
    cubic: Bool[Array, "*N"]
    table: UInt8[Array, "*N 256 1"]  # of those that need no image
    factor: Float32[Array, "*N"]  # of contrast, color and sharpness


def _plan(drawn: Drawn, increasing: bool, height: int, width: int) -> _Plan:
    """From magnitudes to arguments: timm's `LEVEL_TO_ARG`."""
    bits = affine.coordinate_bits(height, width)
    level = drawn.magnitude / MAX_MAGNITUDE
    signed = drawn.sign * level
    kept = (level * 4).astype(jnp.int32)
    threshold = jnp.minimum((level * 256).astype(jnp.int32), 256)
    addend = jnp.minimum((level * 110).astype(jnp.int32), 128)
    if increasing:
        factor = jnp.maximum(1.0 + signed * 0.9, 0.1)
        kept, threshold = 4 - kept, 256 - threshold
    else:
        factor = (level * 18.0 + 1.0) / 10  # in tenths: it is 1 to the last bit in the middle
    maps = {
        "rotate": affine.rotate_map(signed * _ROTATION_DEGREES, height, width, bits),
        "shear_x": affine.shear_x_map(signed * _SHEAR, bits),
        "shear_y": affine.shear_y_map(signed * _SHEAR, bits),
        "translate_x": affine.translate_x_map(signed * _TRANSLATION * width, bits),
        "translate_y": affine.translate_y_map(signed * _TRANSLATION * height, bits),
    }
    point_tables = {
        "invert": tables.invert_table(),
        "posterize": tables.posterize_table(kept),
        "solarize": tables.solarize_table(threshold),
        "solarize_add": tables.solarize_add_table(addend),
        "brightness": tables.brightness_table(factor),
    }
    operation = drawn.operation
    affine_map = affine.identity_map(bits)
    for name, value in maps.items():
        affine_map = jnp.where(operation == _NUMBER[name], value, affine_map)
    table = jnp.arange(256, dtype=jnp.uint8)[:, None]
    for name, value in point_tables.items():
        table = jnp.where(operation == _NUMBER[name], value, table)
    return _Plan(operation, affine_map, drawn.cubic, table, factor)


def _do_branch(
    image: UInt8[Array, "H W 3"], plan: _Plan, fill: Sequence[int]
) -> UInt8[Array, "H W 3"]:
    """One operation, and nothing of the others."""
    branches = [
        lambda: image,
        lambda: affine.affine(image, plan.affine_map, "bilinear", fill),
        lambda: affine.affine(image, plan.affine_map, "bicubic", fill),
        lambda: tables.apply_table(image, plan.table),
        lambda: tables.apply_table(image, tables.contrast_table(image, plan.factor)),
        lambda: tables.apply_table(image, tables.autocontrast_table(image)),
        lambda: tables.apply_table(image, tables.equalize_table(image)),
        lambda: adjust_saturation(image, plan.factor),
        lambda: adjust_sharpness(image, plan.factor),
    ]
    # Of each operation; of the geometric ones that with bilinear interpolation.
    own = {"contrast": 4, "autocontrast": 5, "equalize": 6, "color": 7, "sharpness": 8}
    own |= dict.fromkeys(_AFFINE, 1) | dict.fromkeys(_POINT, 3)
    branch = jnp.asarray([*(own[name] for name in OPERATIONS), 0], jnp.int32)[plan.operation]
    branch = branch + ((branch == 1) & plan.cubic).astype(jnp.int32)
    return jax.lax.switch(branch, branches)


def _do_passes(
    image: UInt8[Array, "H W 3"], plan: _Plan, fill: Sequence[int], *, by_products: bool
) -> UInt8[Array, "H W 3"]:
    """A pass of each family, for a batch under `jax.vmap`."""

    def drawn(name: str) -> Bool[Array, ""]:
        return plan.operation == _NUMBER[name]

    image = affine.affine_either(image, plan.affine_map, plan.cubic, fill)
    table = jnp.broadcast_to(plan.table, (256, 3))
    table = jnp.where(drawn("contrast"), tables.contrast_table(image, plan.factor), table)
    table = jnp.where(drawn("autocontrast"), tables.autocontrast_table(image), table)
    equalized = tables.equalize_table(image, by="products" if by_products else "comparison")
    table = jnp.where(drawn("equalize"), equalized, table)
    image = tables.apply_table(image, table, by_products=by_products)
    degenerate = jnp.where(drawn("sharpness"), smooth(image), grayscale(image))
    blends = drawn("color") | drawn("sharpness")
    return blend(degenerate, image, jnp.where(blends, plan.factor, 1.0))
