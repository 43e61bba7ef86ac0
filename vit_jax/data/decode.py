"""JPEG and PNG bytes to uint8 arrays, with OpenCV.

OpenCV releases the GIL while it decodes, so Grain's threads run in parallel. What was tried beside
it, on one core: simplejpeg 1.9 (libjpeg-turbo into a given buffer) takes 0.72 ms where OpenCV takes
0.74 for an image of ImageNet's size and 0.16 beside 0.20 ms for one of 224x224; decoding at half
the size, which fits few random crops, 0.63: the entropy coding is most of it, and is read whole in
any case. So images are decoded in full, everywhere, to the same pixels as PIL's.
"""

import numpy as np


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
