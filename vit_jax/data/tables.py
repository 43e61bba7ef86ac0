"""Operations that replace each byte by another: tables of 256 entries, with PIL's values.

A table has one column for all channels or one for each; `apply_table` puts it to an image.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float32, Int32, UInt8

from vit_jax.data.color import blend, mean_gray

Table = UInt8[Array, "256 _"]


def apply_table(
    image: UInt8[Array, "H W C"], table: Table, *, by_products: bool = False
) -> UInt8[Array, "H W C"]:
    """`PIL.Image.point`: each byte replaced by its entry in its channel's column, or in the one.

    Args:
        image: the image.
        table: the entries.
        by_products: find them by matrix products, which suits a TPU: its gathers of bytes are slow.
    """
    if by_products:
        return _by_products(image, table)
    columns = table.shape[1]
    index = image.astype(jnp.int32) * columns
    if columns > 1:
        index = index + jnp.arange(columns, dtype=jnp.int32)[None, None]
    return table.reshape(-1).at[index].get(mode="promise_in_bounds")


def invert_table() -> Table:
    """`ImageOps.invert`."""
    return 255 - _bytes()


def posterize_table(bits: Int32[Array, ""]) -> Table:
    """`ImageOps.posterize`: only the upper `bits` bits stay, from 0 (black) to 8 (all).

    PIL 13 refuses 0, which older ones took: black, as here.
    """
    kept = (jnp.int32(0xFF00) >> bits) & 0xFF
    return _bytes() & kept.astype(jnp.uint8)


def solarize_table(threshold: Int32[Array, ""]) -> Table:
    """`ImageOps.solarize`: bytes from the threshold on are inverted; 256 inverts none."""
    return jnp.where(_bytes().astype(jnp.int32) < threshold, _bytes(), 255 - _bytes())


def solarize_add_table(addend: Int32[Array, ""]) -> Table:
    """Bytes below 128 grow by `addend` and end at 255: timm's `solarize_add`."""
    old = _bytes().astype(jnp.int32)
    return jnp.where(old < 128, jnp.minimum(old + addend, 255), old).astype(jnp.uint8)


def brightness_table(factor: Float32[Array, ""]) -> Table:
    """`ImageEnhance.Brightness`, see `color.adjust_brightness`."""
    return blend(jnp.zeros_like(_bytes()), _bytes(), factor)


def contrast_table(image: UInt8[Array, "H W 3"], factor: Float32[Array, ""]) -> Table:
    """`ImageEnhance.Contrast` of this image, see `color.adjust_contrast`."""
    return blend(jnp.broadcast_to(mean_gray(image), (256, 1)), _bytes(), factor)


def autocontrast_table(image: UInt8[Array, "H W C"]) -> Table:
    """`ImageOps.autocontrast`: each channel spread from 0 to 255, unless it is of one value."""
    lowest = image.min((0, 1))[None].astype(jnp.int32)  # (1, C)
    highest = image.max((0, 1))[None].astype(jnp.int32)
    old = _bytes().astype(jnp.int32)
    spread = (old - lowest) * 255 // jnp.maximum(highest - lowest, 1)
    case = (lowest << 16) + (highest << 8) + old
    one_short = jnp.asarray(_one_short())
    at = jnp.searchsorted(one_short, case)
    is_short = one_short.at[at].get(mode="clip") == case
    new = jnp.clip(spread - is_short.astype(jnp.int32), 0, 255)
    return jnp.where(highest > lowest, new, old).astype(jnp.uint8)


def equalize_table(image: UInt8[Array, "H W C"], *, by: str = "scatter") -> Table:
    """`ImageOps.equalize`: the histogram of each channel made as even as a table can.

    Args:
        image: the image.
        by: how bytes are counted: a name of `HISTOGRAMS`. "scatter", one by one, suits a CPU;
            "comparison" with each of the 256 values a GPU; "products" of matrices a TPU. All give
            the same numbers.
    """
    counts = HISTOGRAMS[by](image)
    last = 255 - jnp.argmax(counts[::-1] > 0, axis=0, keepdims=True)  # highest value that occurs
    of_last = jnp.take_along_axis(counts, last, axis=0)
    step = (counts.sum(0, keepdims=True, dtype=jnp.int32) - of_last) // 255  # (1, C)
    below = jnp.cumsum(counts, axis=0, dtype=jnp.int32) - counts
    new = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255).astype(jnp.uint8)
    return jnp.where(step > 0, new, _bytes())


def _bytes() -> UInt8[Array, "256 1"]:
    return jnp.arange(256, dtype=jnp.uint8)[:, None]


def _histogram_by_scatter(image: UInt8[Array, "H W C"]) -> Int32[Array, "256 C"]:
    channels = image.shape[2]
    channel = jnp.arange(channels, dtype=jnp.int32)[None, None]
    index = image.astype(jnp.int32) * channels + channel
    counts = jnp.zeros(256 * channels, jnp.int32)
    ones = jnp.ones(index.size, jnp.int32)
    return counts.at[index.reshape(-1)].add(ones, mode="promise_in_bounds").reshape(256, channels)


def _histogram_by_comparison(image: UInt8[Array, "H W C"]) -> Int32[Array, "256 C"]:
    same = image.reshape(1, -1, image.shape[2]) == _bytes()[:, :, None]
    return same.sum(1, dtype=jnp.int32)


def _halves(
    image: UInt8[Array, "H W C"],
) -> tuple[BFloat16[Array, "C P 16"], BFloat16[Array, "C P 16"]]:
    """For each byte 1 in the column of its upper four bits, and in that of its lower four."""
    byte = image.reshape(-1, image.shape[2]).T[:, :, None]
    half = jnp.arange(16, dtype=jnp.uint8)[None, None]
    return (byte >> 4 == half).astype(jnp.bfloat16), (byte & 15 == half).astype(jnp.bfloat16)


def _histogram_by_products(image: UInt8[Array, "H W C"]) -> Int32[Array, "256 C"]:
    if image.shape[0] * image.shape[1] > 2**24:  # beyond, float32 skips whole numbers
        return _histogram_by_comparison(image)
    upper, lower = _halves(image)
    counts = jnp.einsum("cpu,cpl->cul", upper, lower, preferred_element_type=jnp.float32)
    return counts.reshape(-1, 256).T.astype(jnp.int32)


def _by_products(image: UInt8[Array, "H W C"], table: Table) -> UInt8[Array, "H W C"]:
    """Exact: bfloat16 holds the bytes, and one summand of each sum is not 0."""
    upper, lower = _halves(image)
    entries = jnp.broadcast_to(table, (256, image.shape[2])).T.reshape(-1, 16, 16)
    rows = jnp.einsum("cpu,cul->cpl", upper, entries.astype(jnp.bfloat16))
    found = (rows * lower).sum(-1, dtype=jnp.float32)
    return found.astype(jnp.uint8).T.reshape(image.shape)


HISTOGRAMS = {
    "scatter": _histogram_by_scatter,
    "comparison": _histogram_by_comparison,
    "products": _histogram_by_products,
}


@functools.cache
def _one_short() -> np.ndarray:
    """The entries of autocontrast where PIL's double arithmetic falls below an exact integer.

    Returns:
        (12094,) int32 in rising order: lowest << 16 | highest << 8 | byte.
    """
    byte = np.arange(256)
    found = []
    for lowest in range(255):
        highest = np.arange(lowest + 1, 256)[:, None]
        scale = 255.0 / (highest - lowest)
        pil = (byte * scale + -lowest * scale).astype(int)
        short = pil < (byte - lowest) * 255 // (highest - lowest)
        within = (byte >= lowest) & (byte <= highest)
        row, column = np.nonzero(short & within)
        found.append((lowest << 16) + (highest[row, 0] << 8) + byte[column])
    return np.concatenate(found).astype(np.int32)
