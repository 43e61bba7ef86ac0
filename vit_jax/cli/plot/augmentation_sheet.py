"""What augmentation makes of images, as a sheet: each operation by itself, or a recipe's."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import TrainConfig
from vit_jax.data import STATISTICS, RandomResizedCrop, example_keys, make_train_augment
from vit_jax.data.decode import decode_image
from vit_jax.data.host_crop import pil_resize
from vit_jax.data.randaugment import OPERATIONS, Drawn, apply
from vit_jax.data.statistics import Statistics
from vit_jax.models.spec import Preprocessing
from vit_jax.plots.augmentations import COLUMNS, Cell, Row, draw_sheet
from vit_jax.storage import read_bytes

_SIDE = 128  # pixels of a picture of the sheet of operations
_EXAMPLES = 8  # rows of a recipe's sheet

# How the sheet tells what an operation was given, from level (0 to 1) and sign.
_DEGREES, _SHEAR, _SHIFT = (
    lambda level, sign: f"{sign * 30 * level:+.0f}°",
    lambda level, sign: f"{sign * 0.3 * level:+.2f}",
    lambda level, sign: f"{sign * 45 * level:+.0f}%",
)
_LABELS: dict[str, Callable[[float, int], str]] = {
    "rotate": _DEGREES,
    "shear_x": _SHEAR,
    "shear_y": _SHEAR,
    "translate_x": _SHIFT,
    "translate_y": _SHIFT,
    **dict.fromkeys(
        ("color", "contrast", "brightness", "sharpness"),
        lambda level, sign: f"x {max(0.1, 1 + sign * 0.9 * level):.2f}",
    ),
}
_ONE_WAY: dict[str, Callable[[float], str]] = {
    "posterize": lambda level: f"bits: {4 - int(4 * level)}",
    "solarize": lambda level: f"from {256 - int(256 * level)}",
    "solarize_add": lambda level: f"+{int(110 * level)}",
}
_MAGNITUDES = (3, 6, 9)

# The rows of random methods: what `make_train_augment` is given, and the crop before it.
_METHODS: dict[str, dict[str, Any]] = {
    "rotation 15° and flip": {"rotation_degrees": 15.0, "flip": True},
    "padded crop 16": {"padding_crop": 16},
    "random resized crop": {"crop": RandomResizedCrop(interpolation="bicubic")},
    "color jitter 0.4": {"color_jitter": 0.4},
    "rand-m9-mstd0.5-inc1": {"rand_augment": "rand-m9-mstd0.5-inc1"},
    "erasing: const": {"random_erasing": 1.0, "random_erasing_mode": "const"},
    "erasing: rand": {"random_erasing": 1.0, "random_erasing_mode": "rand"},
    "erasing: pixel": {"random_erasing": 1.0, "random_erasing_mode": "pixel"},
    "all but jitter": {
        "crop": RandomResizedCrop(interpolation="random"),
        "flip": True,
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.25,
    },
}


def plot_operations(paths: Sequence[str], out: pathlib.Path) -> None:
    """Draws RandAugment's operations at three magnitudes, and draws of each random method.

    Args:
      paths: image files; the rows take them in turn. None: a picture made up here.
      out: the file to write, PNG.

    Raises:
      ValueError: a file is no image.
      OSError: a file cannot be read or written.
    """
    images = [_square(_read(path), _SIDE) for path in paths] or [_made_up(_SIDE)]
    operations = _operation_rows(images)
    methods = _method_rows(images)
    draw_sheet(
        [
            ("RandAugment's operations at magnitudes 3, 6 and 9 (inc1)", operations),
            ("random methods, six draws each", methods),
        ],
        out,
    )


def plot_recipe(config: TrainConfig, paths: Sequence[str], out: pathlib.Path) -> None:
    """Draws what a recipe's training sees of images in its first epochs, beside the images.

    Of a set whose images vary in size, which the host crops, all columns show the crop of the first
    epoch.

    Args:
      config: the recipe.
      paths: image files; none: the first examples of the run.
      out: the file to write, PNG.

    Raises:
      ValueError: the config cannot be run, or a file is no image.
      OSError: data or a file cannot be read or written.
    """
    from vit_jax.training.run import open_run, random_crop
    from vit_jax.training.step import augment_key

    # One device, and a batch of what is shown: nothing of this changes what happens to an image.
    config = dataclasses.replace(
        config,
        accumulation_steps=1,
        parallel="jit",
        mesh=dataclasses.replace(config.mesh, data=1, fsdp=1),
        data=dataclasses.replace(config.data, batch_size=_EXAMPLES, eval_batch_size=_EXAMPLES),
    )
    run = open_run(config)
    if paths:
        side = max(run.model.input_size)
        images = jnp.asarray(np.stack([_square(_read(path), side) for path in paths]))
        index = jnp.arange(len(paths), dtype=jnp.int32)
    else:
        with run.train_batches(0) as batches:
            batch = next(iter(batches))
        images, index = jnp.asarray(batch["image"]), jnp.asarray(batch["index"])
    crop = random_crop(config) if paths or run.data.train.image_shape else None

    @jax.jit
    def prepared(epoch: jax.Array, crops: jax.Array | None) -> jax.Array:
        return run.prepare_train(
            example_keys(augment_key(config.seed), epoch, index), images, crops
        )

    def seen_in(epoch: int) -> jax.Array:
        return prepared(jnp.int32(epoch), _crops(crop, images, config.seed, epoch, index))

    plain = _visible(run.prepare_eval(images), run.preprocessing)
    epochs = [_visible(seen_in(epoch), run.preprocessing) for epoch in range(COLUMNS)]
    rows = [
        (
            f"image {int(number)}",
            [
                (plain[at], "as it is"),
                *((seen[at], f"epoch {epoch + 1}") for epoch, seen in enumerate(epochs)),
            ],
        )
        for at, number in enumerate(index)
    ]
    draw_sheet([("what training sees", rows)], out)


def _operation_rows(images: Sequence[np.ndarray]) -> list[Row]:
    shown = [
        (row, name, magnitude, sign)
        for row, name in enumerate(OPERATIONS)
        for sign in ((1, -1) if name in _LABELS else (1,))
        for magnitude in (_MAGNITUDES if name in _LABELS or name in _ONE_WAY else (9,))
    ]
    drawn = Drawn(
        operation=jnp.asarray([[OPERATIONS.index(name)] for _, name, _, _ in shown], jnp.int32),
        magnitude=jnp.asarray([[magnitude] for *_, magnitude, _ in shown], jnp.float32),
        sign=jnp.asarray([[sign] for *_, sign in shown], jnp.float32),
        cubic=jnp.ones((len(shown), 1), jnp.bool_),
    )
    batch = jnp.asarray(np.stack([images[row % len(images)] for row, *_ in shown]))
    fill = [round(255 * mean) for mean in STATISTICS["imagenet"].mean]
    results = jax.jit(lambda batch: apply(batch, drawn, True, fill, one_by_one=True))(batch)
    rows: list[Row] = []
    for row, name in enumerate(OPERATIONS):
        cells: list[Cell] = [(images[row % len(images)], "")]
        for (_, of, magnitude, sign), result in zip(shown, np.asarray(results), strict=True):
            if of == name:
                cells.append((result, _label(name, magnitude / 10, sign)))
        rows.append((name, cells))
    return rows


def _label(name: str, level: float, sign: int) -> str:
    if name in _LABELS:
        return _LABELS[name](level, sign)
    return _ONE_WAY[name](level) if name in _ONE_WAY else ""


def _method_rows(images: Sequence[np.ndarray]) -> list[Row]:
    mean, std = STATISTICS["imagenet"]
    index = jnp.arange(COLUMNS, dtype=jnp.int32)
    rows: list[Row] = []
    for row, (name, settings) in enumerate(_METHODS.items()):
        image = images[row % len(images)]
        methods = {name: value for name, value in settings.items() if name != "crop"}
        augment = make_train_augment(_SIDE, mean=mean, std=std, one_by_one=True, **methods)
        keys = example_keys(jax.random.key(0), 0, index)
        batch = jnp.broadcast_to(jnp.asarray(image), (COLUMNS, *image.shape))
        crops = _crops(settings.get("crop"), batch, 0, 0, index)
        seen = _visible(jax.jit(augment)(keys, batch, crops), Statistics(mean, std))
        rows.append((name, [(image, ""), *((one, "") for one in seen)]))
    return rows


def _crops(
    crop: RandomResizedCrop | None, images: jax.Array, seed: int, epoch: int, index: jax.Array
) -> jax.Array | None:
    """What the loader draws for these images; None: they are shown whole."""
    if crop is None:
        return None
    size = images.shape[1:3]
    drawn = [crop.draw(*size, seed=seed, epoch=epoch, index=int(number)) for number in index]
    return jnp.asarray(drawn, jnp.int32)


def _visible(images: jax.Array, statistics: Statistics | Preprocessing) -> np.ndarray:
    """Normalised images as bytes again."""
    values = np.asarray(images) * np.asarray(statistics.std) + np.asarray(statistics.mean)
    return np.clip(np.round(255 * values), 0, 255).astype(np.uint8)


def _read(path: str) -> np.ndarray:
    return decode_image(read_bytes(pathlib.Path(path)), 3, path)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The central square, resized."""
    height, width, _ = image.shape
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return pil_resize(image[top : top + edge, left : left + edge], side, side, "bilinear")


def _made_up(side: int) -> np.ndarray:
    """A landscape of few colours: sky, sun, hills, a house with edges and a door."""
    y, x = np.mgrid[:side, :side] / side
    image = np.stack([0.45 + 0.4 * y, 0.62 + 0.25 * y, 0.92 - 0.1 * y], -1)

    def paint(where: np.ndarray, *colour: float) -> None:
        image[where] = colour

    paint((x - 0.78) ** 2 + (y - 0.2) ** 2 < 0.011, 0.98, 0.86, 0.3)
    paint(y > 0.62 - 0.09 * np.sin(5 * x), 0.32, 0.52, 0.34)
    paint(y > 0.74 + 0.05 * np.sin(7 * x + 1), 0.42, 0.66, 0.28)
    paint((abs(x - 0.36) < 0.17) & (y > 0.5) & (y < 0.82), 0.86, 0.78, 0.66)
    paint((y < 0.5) & (y > 0.3 + 1.0 * abs(x - 0.36)), 0.68, 0.2, 0.18)
    paint((abs(x - 0.29) < 0.035) & (y > 0.66) & (y < 0.82), 0.35, 0.22, 0.14)
    paint((abs(x - 0.44) < 0.04) & (abs(y - 0.62) < 0.04), 0.25, 0.38, 0.55)
    paint((abs(x - 0.76) < 0.018) & (y > 0.55) & (y < 0.84), 0.36, 0.25, 0.16)
    paint((x - 0.76) ** 2 + (y - 0.5) ** 2 < 0.012, 0.15, 0.4, 0.2)
    texture = np.random.default_rng(0).normal(0, 0.015, image.shape)
    return np.clip(np.round(255 * (image + texture)), 0, 255).astype(np.uint8)
