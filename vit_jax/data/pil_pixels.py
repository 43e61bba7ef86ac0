"""The pixels of PIL images, as a file's are read."""

import numpy as np
from PIL import Image

from vit_jax.data.decode import orientation, turned

_STRIP_PIXELS = 2**20


class Refusal(ValueError):
    """What is wrong with an image, in our words."""


def pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    """A PIL image as a file is read: upright, (H, W, channels) uint8.

    Raises:
      ValueError: pixels of unknown range, or cut off.
    """
    try:
        return upright_pixels(image, channels)
    except OSError as error:
        raise ValueError(f"an image that cannot be decoded: {error}") from error


def upright_pixels(image: Image.Image, channels: int) -> np.ndarray:
    """As `pixels_of`, of a decoded image; strip by strip, so that nothing is there three times."""
    width, height = image.size
    pixels = np.empty((height, width, channels), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strip_pixels = pixels[top : top + rows]
        if strip.mode.startswith("I;16") or (strip.mode == "I" and image.format == "PPM"):
            strip_pixels[:] = (np.asarray(strip) >> 8)[..., None]
            continue
        if strip.mode in ("I", "F"):
            raise Refusal(f"its pixels ({strip.mode}) are numbers of 32 bits of unknown range")
        if strip.mode in ("P", "PA"):  # Pillow warns of a palette with alpha that is dropped
            strip = strip.convert("RGBA")
        converted = np.asarray(strip.convert("RGB" if channels == 3 else "L"))
        strip_pixels[:] = converted.reshape(strip_pixels.shape)
    return turned(pixels, orientation(image))
