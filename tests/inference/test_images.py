"""Image files: every kind that is right gives its pixels, every kind that is wrong a reason."""

import os
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.commands import run_alone
from tests.inference.broken import KINDS, encoded, grey16, picture, png16, write_broken
from vit_jax.data.decode import decode_image
from vit_jax.inference.images import ImageFiles, find_images, read_image

# VIT_JAX_STRESS=1000 makes so many broken files.
FILES = int(os.environ.get("VIT_JAX_STRESS", len(KINDS)))
GIB = 2**20  # of ru_maxrss, in KiB


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd files
def test_every_broken_file_is_read_or_refused(tmp_path):
    files = write_broken(tmp_path, len(KINDS))
    for path, readable in files.items():
        if "bomb" in path:
            continue  # 64 million pixels: below
        if not readable:
            with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
                read_image(path)
            continue
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


def test_training_decodes_the_same_pixels(tmp_path, rng):
    for mode in ("RGB", "L", "RGBA"):
        for kind in ("PNG", "JPEG"):
            if (mode, kind) == ("RGBA", "JPEG"):
                continue
            data = encoded(picture(rng, mode), kind)
            path = written(tmp_path / "image", data)
            for channels in (3, 1):
                if (mode, channels) == ("RGBA", 1) or (mode, channels) == ("RGB", 1):
                    continue  # OpenCV's weights of grey differ by rounding
                wanted = decode_image(data, channels, "")
                np.testing.assert_array_equal(read_image(path, channels), wanted)
    data = png16(rng)
    np.testing.assert_array_equal(read_image(written(path, data)), decode_image(data, 3, ""))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_16_bits_the_high_byte(tmp_path, rng, kind):
    data = grey16(rng, kind)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16
    path = written(tmp_path / "image", data)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], pixels >> 8)
    np.testing.assert_array_equal(read_image(path)[..., 2], pixels >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, rng, orientation):
    from PIL import ImageOps

    image, exif = picture(rng), Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / "image", encoded(image, "PNG", exif=exif))
    with Image.open(path) as stored:
        np.testing.assert_array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(stored)))


def test_damaged_remarks_are_no_matter(tmp_path, rng):
    image = picture(rng)
    path = written(tmp_path / "image", encoded(image, "PNG", exif=b"Exif\0\0no TIFF header"))
    np.testing.assert_array_equal(read_image(path), np.asarray(image))


def test_of_several_pictures_the_first(tmp_path, rng):
    frames = [picture(rng, size=(40, 30)) for _ in range(3)]
    for kind in ("PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        path = written(tmp_path / "image", data)
        np.testing.assert_array_equal(read_image(path), np.asarray(frames[0]))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_colours_of_print_and_video(tmp_path, mode):
    red = Image.new("RGB", (8, 8), (200, 30, 40)).convert(mode)
    path = written(tmp_path / "image", encoded(red, "JPEG" if mode == "YCbCr" else "TIFF"))
    assert np.abs(read_image(path).astype(int) - (200, 30, 40)).max() < 8


def test_strips_make_a_whole(tmp_path, rng, monkeypatch):
    from vit_jax.data import pil_pixels

    image = picture(rng, size=(31, 47))
    monkeypatch.setattr(pil_pixels, "_STRIP_PIXELS", 100)
    path = written(tmp_path / "image", encoded(image, "PNG"))
    np.testing.assert_array_equal(read_image(path), np.asarray(image))


def test_what_is_too_large_is_told_before_it_is_decoded(tmp_path, monkeypatch):
    from vit_jax.inference import images

    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    for kind, most in (("PNG", 99), ("WEBP", 49)):
        path = written(tmp_path / "image", encoded(Image.new("RGB", (10, 10)), kind))
        with pytest.raises(ValueError, match=rf"10x10 pixels; of {kind} at most {most} are read"):
            read_image(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="missing: No such file"):
        read_image(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        read_image(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a folder"):
        read_image(tmp_path)


def test_source_goes_on_and_keeps_the_reason(tmp_path, rng):
    good = written(tmp_path / "good", encoded(Image.new("RGB", (4, 3), (9, 8, 7)), "PNG"))
    source = ImageFiles([tmp_path / "bad", good, np.ones((2, 5, 3), np.uint8)], 3)
    examples = source.__getitems__([2, 1, 0])
    assert [example["image"].shape for example in examples] == [(2, 5, 3), (3, 4, 3), (1, 1, 3)]
    assert (examples[1]["image"] == (9, 8, 7)).all()
    assert source.unreadable == {0: "No such file or directory"}
    with pytest.raises(ValueError, match=r"image 0: wanted uint8 \(H, W, 1\), got uint8 \(2, 5, 3"):
        ImageFiles([np.ones((2, 5, 3), np.uint8)], 1)


def test_files_folders_and_patterns_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/2.JPG",
        "b/1.png",
        "b/a/3.webp",
        "b/.x/4.png",
        "b/.5.png",
        "b/t.txt",
        "c[1].png",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert find_images(["c[1].png", "b", "b/*.png", "b/t.txt", "none*", "gone"]) == [
        *("c[1].png", "b/1.png", "b/2.JPG", "b/a/3.webp", "b/t.txt", "none*", "gone")
    ]
    assert find_images(["./b/2.JPG", "b", str(tmp_path / "b/1.png")]) == [  # each once
        *("./b/2.JPG", "b/1.png", "b/a/3.webp")
    ]
    assert find_images(["b/**/*.webp"]) == ["b/a/3.webp"]
    os.mkdir("empty")
    assert find_images(["empty"]) == []


_MEASURE = """
import resource, sys, warnings
import numpy as np
warnings.filterwarnings("ignore")
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.data.loader import eval_batches
from vit_jax.inference.images import ImageFiles, find_images
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit = lambda image: evaluation_crop(image, 224, 224, 0.9)
source = ImageFiles([*find_images(sys.argv[1:]), sys.argv[1]], 3, fit)
options = dict(batch_size=16, num_workers=4, image_size=224)
for batch in eval_batches(ImageFiles([np.ones((9, 9, 3), np.uint8)] * 99, 3), **options): pass
before = peak()
for batch in eval_batches(source, **options): pass
print(len(source), len(source.unreadable), before, peak())
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_folder_of_them_takes_less_than_a_gibibyte(tmp_path, record_property):
    """In a process of its own, four threads reading; all are counted, and the folder is no file."""
    files = write_broken(tmp_path, FILES)
    cpu = {"JAX_PLATFORMS": "cpu"}
    result = run_alone("-c", _MEASURE, str(tmp_path), timeout=None, variables=cpu)
    count, unreadable, before, after = map(int, result.stdout.split())
    assert (count, unreadable) == (FILES + 1, list(files.values()).count(False) + 1)
    record_property("RSS before and after, MiB", (before // 1024, after // 1024))
    print(f"{count} files: peak RSS {before // 1024} MiB before, {after // 1024} MiB after")
    assert after - before < GIB


def test_large_images_are_decoded_by_one_thread(tmp_path, monkeypatch):
    from vit_jax.inference import images

    monkeypatch.setattr(images, "_LARGE", 99)
    threads = []

    def fit(pixels: np.ndarray) -> np.ndarray:
        threads.append((pixels.size, threading.get_ident()))
        return pixels

    for side in (9, 10, 11):
        path = written(tmp_path / str(side), encoded(Image.new("L", (side, side)), "PNG"))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(read_image, path, 1, fit).result()
            own = pool.submit(threading.get_ident).result()
            assert (threads[-1][1] == own) == (side == 9)
    assert threads[1][1] == threads[2][1]
