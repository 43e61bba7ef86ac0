"""JPEG and PNG bytes to uint8 arrays, and images of varying size to one size, with OpenCV.

OpenCV releases the GIL while it decodes and resizes, so Grain's threads run in parallel.
"""

import numpy as np

from vit_jax.data.resample import Interpolation, resample


def decode_image(data: bytes, channels: int, where: str) -> np.ndarray:
    """Decodes one compressed image.

    Grey, palette and CMYK images become RGB where three channels are asked for, an alpha channel is
    dropped, 16-bit values keep their high byte, and EXIF orientation is ignored: as TFDS and
    `PIL.Image.convert("RGB")` do.

    Args:
        data: the bytes of a JPEG, PNG or any other file that OpenCV reads.
        channels: 3 for RGB, 1 for grey.
        where: what an error calls the image.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ValueError: the bytes are not a whole image.
    """
    import cv2

    flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    # imdecode raises on an empty buffer and returns None for anything else that is no image.
    decoded = (
        cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if data
        else None
    )
    if decoded is None:
        raise ValueError(f"{where} is not a readable image ({len(data)} bytes): damaged or cut off")
    return decoded.reshape(*decoded.shape[:2], channels)  # grey comes without its axis


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` (H, W, C) uint8 at (height, width), whatever its aspect ratio.

    Averages areas where both sides shrink and interpolates bilinearly otherwise.
    """
    import cv2

    shrinks = height <= image.shape[0] and width <= image.shape[1]
    resized = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return resized.reshape(height, width, image.shape[2])  # OpenCV drops a single channel's axis


def resize_and_centre_crop(
    image: np.ndarray,
    height: int,
    width: int,
    crop_fraction: float,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """The central (height, width) of `image`, which is first resized with its aspect ratio kept.

    The smallest resize is taken that covers (height, width) / crop_fraction: the rule of timm's
    evaluation, generalised to sides that differ.

    Args:
        image: (H, W, C) uint8.
        height: rows of the result.
        width: columns of the result.
        crop_fraction: share of the resized image's tighter side that the crop keeps, in (0, 1].
        interpolation: "bicubic": PIL's, antialiased, as `resample` has it; "bilinear": `resize`.
    """
    scale = max(
        height / crop_fraction / image.shape[0],
        width / crop_fraction / image.shape[1],
    )
    rows = max(height, round(image.shape[0] * scale))
    columns = max(width, round(image.shape[1] * scale))
    if interpolation == "bicubic":
        resized = resample(image, rows, columns, "bicubic")
    else:
        resized = resize(image, rows, columns)
    top, left = (resized.shape[0] - height) // 2, (resized.shape[1] - width) // 2
    return resized[top : top + height, left : left + width]
