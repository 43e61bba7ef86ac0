"""Images to hold against PIL: random ones and the extremes."""

import numpy as np
from PIL import Image


def noise(height: int = 37, width: int = 52, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Every byte equally likely: the worst case of all rounding."""
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(height: int = 37, width: int = 52) -> np.ndarray:
    """Smooth waves of colour that fill only a part of the range."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + c) + np.cos(y / (5 + c)) for c in range(3)]
    return (110 + 30 * np.stack(waves, -1)).astype(np.uint8)


IMAGES = {
    "noise": noise(),
    "picture": picture(),
    "black": np.zeros((37, 52, 3), np.uint8),
    "white": np.full((37, 52, 3), 255, np.uint8),
    "one colour": np.full((37, 52, 3), (7, 130, 200), np.uint8),
    "two values": np.where(noise() < 128, 13, 14).astype(np.uint8),
}


def pil(image: np.ndarray) -> Image.Image:
    """As PIL has it; grey where there is one channel."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def differences(ours: object, expected: Image.Image) -> np.ndarray:
    """Grey levels between the two, value by value."""
    return np.abs(np.asarray(ours).astype(int) - np.asarray(expected).astype(int))
