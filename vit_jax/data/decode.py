"""JPEG and PNG bytes to uint8 arrays, with OpenCV.

OpenCV releases the GIL while it decodes, so Grain's threads run in parallel. What was tried beside
it, on one core: simplejpeg 1.9 (libjpeg-turbo into a given buffer) takes 0.72 ms where OpenCV takes
0.74 for an image of ImageNet's size and 0.16 beside 0.20 ms for one of 224x224; decoding at half
the size, which fits few random crops, 0.63: the entropy coding is most of it, and is read whole in
any case. So images are decoded in full, everywhere, to the same pixels as PIL's.
"""

import io
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26  # of an image, in training, evaluation and prediction
_ORIENTATION = 0x0112  # of EXIF
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Markers of JPEG that give the size: all of C0 to CF but the tables (C4, CC) and a reserved one.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_image(data: bytes, channels: int, where: str) -> np.ndarray:
    """Decodes one compressed image.

    Grey, palette and CMYK images become RGB where three channels are asked for, an alpha channel is
    dropped, 16-bit values keep their high byte, as `PIL.Image.convert("RGB")` does, and EXIF
    orientation is applied, as `PIL.ImageOps.exif_transpose` does.

    Args:
        data: the bytes of a JPEG, PNG or any other file that OpenCV reads.
        channels: 3 for RGB, 1 for grey.
        where: what an error calls the image.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ValueError: the bytes are not a whole image, or one of more than `MAX_PIXELS`.
    """
    import cv2

    width, height = _stated_size(data, where)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{where}: {width:,}x{height:,} pixels; at most {MAX_PIXELS:,} are read")
    flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    # imdecode raises on an empty buffer and returns None for anything else that is no image.
    decoded = (
        cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if data
        else None
    )
    if decoded is None:
        raise ValueError(f"{where} is not a readable image ({len(data)} bytes): damaged or cut off")
    pixels = decoded.reshape(*decoded.shape[:2], channels)  # grey comes without its axis
    return turned(pixels, _orientation_of(data))


def _stated_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height as the bytes state them; (0, 0) where they are no image."""
    from PIL import Image

    try:
        if data.startswith(_PNG):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(_JPEG):  # Pillow takes many times as long
            position = 2
            while data[position + 1] not in _FRAMES:
                position += 2 + struct.unpack_from(">H", data, position + 2)[0]
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{where}: more than {MAX_PIXELS:,} pixels") from None
    except Exception:  # cut off, or of no known kind: the decoder says so
        return 0, 0


def orientation(image: "Image.Image") -> int:
    """EXIF's orientation of an image, 1 to 8; 1 is upright, also where nothing states it."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # remarks that are damaged make the picture no worse
        return 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels upright: EXIF says where the first row and column of the file are seen."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)


def _orientation_of(data: bytes) -> int:
    # Few files have it, and to look for its name takes microseconds: JPEG's, PNG's, WebP's.
    if not any(mark in data for mark in (b"Exif\0\0", b"eXIf", b"EXIF")):
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return orientation(image)
    except Exception:  # OpenCV has read it
        return 1
