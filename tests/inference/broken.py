"""Image files of every kind that goes wrong, made up from a seed."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HUGE = 20_000


def write_broken(folder: Path, count: int, seed: int = 0) -> dict[str, bool]:
    """Writes `count` files, of each kind in turn.

    Returns:
      {path: whether it can be read}, in the order of the names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    written = {}
    for i in range(count):
        name, make, readable = _KINDS[i % len(_KINDS)]
        suffix = rng.choice((".jpg", ".png", ".gif", ".webp", ".bmp", ".tif"))
        path = folder / f"{i:04d}_{name}{suffix}"
        path.write_bytes(make(rng))
        written[str(path)] = readable
    return written


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(rng: random.Random, mode: str = "RGB", size: tuple[int, int] | None = None):
    """Noise, in any mode of 8 bits."""
    width, height = size or (rng.randint(20, 90), rng.randint(20, 90))
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.frombuffer(rng.randbytes(width * height * bands), np.uint8)
    shape = (height, width, bands) if bands > 1 else (height, width)
    whole = Image.fromarray(pixels.reshape(shape).copy()) if bands in (1, 3) else None
    if whole is not None:
        return whole.convert(mode)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def png(width: int, height: int, bits: int, colours: int, data: bytes) -> bytes:
    """A PNG of a stated size, whatever its data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def png16(rng: random.Random) -> bytes:
    """A 16-bit RGB PNG, which Pillow does not write."""
    width, height = 30, 20
    rows = b"".join(b"\0" + rng.randbytes(width * 6) for _ in range(height))
    return png(width, height, 16, 2, zlib.compress(rows))


def grey16(rng: random.Random, kind: str = "PNG") -> bytes:
    pixels = np.frombuffer(rng.randbytes(30 * 20 * 2), np.uint16).reshape(20, 30)
    return encoded(Image.fromarray(pixels.copy()), kind)


def _truncated(kind: str) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        data = encoded(picture(rng, size=(64, 64)), kind)
        return data[: rng.randint(1, len(data) * 2 // 3)]

    return make


def _animated(kind: str) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        frames = [picture(rng, size=(40, 30)) for _ in range(3)]
        return encoded(frames[0], kind, save_all=True, append_images=frames[1:])

    return make


def _patched(kind: str, find: bytes, put: bytes) -> Callable[[random.Random], bytes]:
    """A small file that says it is another size."""

    def make(rng: random.Random) -> bytes:
        data = encoded(picture(rng, size=(64, 48)), kind)
        assert find in data
        return data.replace(find, put, 1)

    return make


def _huge_webp(_: random.Random) -> bytes:
    most = struct.pack("<I", 16_382)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + most * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _not_whole(rng: random.Random) -> bytes:
    data = bytearray(encoded(picture(rng, size=(64, 64)), "PNG"))
    for _ in range(20):
        data[rng.randrange(8, len(data))] ^= rng.randrange(1, 256)
    return bytes(data)


_SMALL = struct.pack(">HH", 48, 64)
_LARGE = struct.pack(">HH", HUGE, HUGE)
_KINDS: list[tuple[str, Callable[[random.Random], bytes], bool]] = [
    ("truncated_jpeg", _truncated("JPEG"), False),
    ("truncated_png", _truncated("PNG"), False),
    ("truncated_webp", _truncated("WEBP"), False),
    ("truncated_bmp", _truncated("BMP"), False),
    ("truncated_tiff", _truncated("TIFF"), False),
    ("truncated_gif", lambda rng: encoded(picture(rng, size=(64, 64)), "GIF")[:400], False),
    ("jpeg_by_any_name", lambda rng: encoded(picture(rng), "JPEG"), True),
    ("png_by_any_name", lambda rng: encoded(picture(rng), "PNG"), True),
    ("webp_by_any_name", lambda rng: encoded(picture(rng), "WEBP"), True),
    ("text", lambda rng: b"<html>" + rng.randbytes(rng.randint(0, 500)).hex().encode(), False),
    ("empty", lambda _: b"", False),
    ("noise", lambda rng: rng.randbytes(rng.randint(1, 3000)), False),
    ("one_pixel_png", lambda rng: encoded(picture(rng, size=(1, 1)), "PNG"), True),
    ("one_pixel_jpeg", lambda rng: encoded(picture(rng, size=(1, 1)), "JPEG"), True),
    ("one_pixel_gif", lambda rng: encoded(picture(rng, size=(1, 1)), "GIF"), True),
    ("strip", lambda rng: encoded(picture(rng, size=(1, 60_000)), "PNG"), True),
    ("huge_png", lambda _: png(HUGE, HUGE, 8, 2, zlib.compress(b"")), False),
    ("huge_jpeg", _patched("JPEG", _SMALL, _LARGE), False),
    (
        "huge_gif",
        _patched("GIF", struct.pack("<HH", 64, 48), struct.pack("<HH", HUGE, HUGE)),
        False,
    ),
    (
        "huge_bmp",
        _patched("BMP", struct.pack("<ii", 64, 48), struct.pack("<ii", HUGE, HUGE)),
        False,
    ),
    ("huge_ppm", lambda _: b"P6 20000 20000 255\n" + b"\0" * 100, False),
    ("huge_webp", _huge_webp, False),
    ("bomb", lambda _: png(8000, 8000, 8, 2, zlib.compress(b"\0" * 24_001 * 8000)), True),
    ("animated_gif", _animated("GIF"), True),
    ("animated_png", _animated("PNG"), True),
    ("animated_webp", _animated("WEBP"), True),
    ("two_pages", _animated("TIFF"), True),
    ("grey16_png", grey16, True),
    ("grey16_tiff", lambda rng: grey16(rng, "TIFF"), True),
    ("grey16_ppm", lambda rng: grey16(rng, "PPM"), True),
    ("rgb16_png", png16, True),
    ("cmyk", lambda rng: encoded(picture(rng, "CMYK"), "JPEG"), True),
    ("alpha", lambda rng: encoded(picture(rng, "RGBA"), "PNG"), True),
    ("palette", lambda rng: encoded(picture(rng).quantize(16), "PNG", transparency=b"\0\1"), True),
    ("bits", lambda rng: encoded(picture(rng).convert("1"), "PNG"), True),
    ("grey_alpha", lambda rng: encoded(picture(rng, "LA"), "PNG"), True),
    ("float", lambda rng: encoded(picture(rng, "L").convert("F"), "TIFF"), False),
    ("bits_flipped", _not_whole, False),
    ("postscript", lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", False),
]
KINDS = tuple(name for name, _, _ in _KINDS)
