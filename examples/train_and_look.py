"""Train a small ViT on handwritten digits, let it predict, and look at what it attends to.

    python examples/train_and_look.py

No download: scikit-learn's digits come along. Writes `look.png` into the work directory: the curves
of the run, eight test images with their predictions, and over each the attention rollout of the
class token. Repeated on the same work directory, it draws again without training again.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import vit_jax
from vit_jax.config import TrainConfig, find_recipe, load_recipe
from vit_jax.data import open_splits
from vit_jax.inference.predict import Prediction, predict
from vit_jax.inspect.attention import attention_maps, attention_rollout, class_attention
from vit_jax.models.base import VisionModel
from vit_jax.training import train

COUNT = 8


def short_run(epochs: int, examples: int | None) -> TrainConfig:
    """The recipe `digits_vit`, shortened."""
    recipe = load_recipe(find_recipe("digits_vit"))
    return dataclasses.replace(
        recipe,
        num_epochs=epochs,
        data=dataclasses.replace(recipe.data, num_train_examples=examples),
        optimizer=dataclasses.replace(recipe.optimizer, warmup_epochs=1.0),
        evaluation=dataclasses.replace(recipe.evaluation, every_epochs=1),
    )


def rollout(model: VisionModel, images: np.ndarray) -> np.ndarray:
    """How much each patch counts for the class token, (B, rows, columns), of uint8 images."""

    @jax.jit
    def attended(images: jax.Array) -> jax.Array:
        return class_attention(attention_rollout(attention_maps(model, images)), model)

    return np.asarray(attended(vit_jax.preprocess(model, images)))


def draw(
    rows: list[dict], images: np.ndarray, predictions: list[Prediction], attended: np.ndarray
) -> Figure:
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1)
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for axes, metric, unit in zip(
        above.subplots(1, 2), ("loss", "top1"), ("nats", "fraction of 1"), strict=True
    ):
        for split, marker in (("train", ""), ("validation", "o"), ("test", "*")):
            chosen = [row for row in rows if row["split"] == split]
            epochs = [row["epoch"] for row in chosen]
            axes.plot(epochs, [row[metric] for row in chosen], marker=marker, label=split)
        axes.set(xlabel="epoch", ylabel=f"{metric} ({unit})")
        axes.grid(alpha=0.3)
        axes.legend()
    pictures = zip(images, predictions, attended, strict=True)
    for column, (image, prediction, weights) in zip(
        below.subplots(2, len(images)).T, pictures, strict=True
    ):
        guess = prediction.top[0]
        column[0].set_title(f"{guess.name}: {guess.probability:.0%}")
        extent = (0, image.shape[1], image.shape[0], 0)
        for axes in column:
            axes.imshow(image, cmap="gray", extent=extent)
            axes.set_axis_off()
        column[1].imshow(weights, cmap="inferno", alpha=0.6, extent=extent)
    below.suptitle("predictions, and below them the attention rollout of the class token")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/train_and_look")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--examples", type=int, help="training images (default: all 1,257)")
    options = parser.parse_args()

    config = short_run(options.epochs, options.examples)
    results = train(config, options.workdir)
    print(f"test top-1 {results['test_top1']:.3f}")

    model = vit_jax.from_pretrained(options.workdir)
    test = open_splits("digits").test
    assert test is not None
    examples = [test[index] for index in range(COUNT)]
    images = np.stack([example["image"] for example in examples])  # (B, 8, 8, 1) uint8
    predictions = list(predict(model, list(images), top=3))
    for example, prediction in zip(examples, predictions, strict=True):
        guesses = ", ".join(f"{guess.name} {guess.probability:.2f}" for guess in prediction.top)
        print(f"a {example['label']}: {guesses}")

    lines = (options.workdir / "metrics.jsonl").read_text().splitlines()
    figure = draw(list(map(json.loads, lines)), images, predictions, rollout(model, images))
    figure.savefig(options.workdir / "look.png", dpi=100)
    print(f"wrote {options.workdir / 'look.png'}")


if __name__ == "__main__":
    main()
