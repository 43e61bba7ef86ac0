"""`vit-jax predict`: what a trained model sees in image files."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import (
    Parser,
    add_images,
    add_model,
    add_precision,
    count,
    given_images,
    load_given_model,
    printable,
)

if TYPE_CHECKING:
    from vit_jax.inference.predict import Prediction

_BAR = 20  # characters of a probability of 1


def run(arguments: Sequence[str]) -> int:
    """`predict CHECKPOINT_OR_WEIGHTS IMAGE...`; 1 if an image could not be read."""
    options = _parser().parse_args(arguments)
    paths = given_images(options)
    jax_setup.set_up_jax()
    jax_setup.set_matmul_precision(options.matmul_precision)
    from vit_jax.inference.predict import predict

    unread = 0
    model = load_given_model(options)
    for prediction in predict(
        model, paths, options.top, options.batch_size, threshold=options.threshold
    ):
        if prediction.error is not None:
            unread += 1
            path = printable(prediction.path or "")
            print(f"skipped {path}: {printable(prediction.error)}", file=sys.stderr)
        if options.json:
            print(json.dumps(prediction.to_dict()), flush=True)
        elif prediction.error is None:
            print(_as_text(prediction), flush=True)
    images = "1 image" if len(paths) == 1 else f"{len(paths):,} images"
    print(f"{images}, {unread:,} could not be read", file=sys.stderr)
    return 1 if unread else 0


def _as_text(prediction: "Prediction") -> str:
    if prediction.values:
        numbers = " ".join(f"{value:.6g}" for value in prediction.values)
        return f"{printable(prediction.path or '')}: {numbers}"
    names = [printable(guess.name) for guess in prediction.top]
    width = max(map(len, names), default=0)
    lines = []
    for name, guess in zip(names, prediction.top, strict=True):
        bar = "█" * round(_BAR * guess.probability)
        lines.append(f"  {name:<{width}}  {guess.probability:.4f}  {bar}".rstrip())
    if not lines:
        lines = ["  no label is probable enough"]
    return "\n".join([printable(prediction.path or ""), *lines])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vit-jax predict", description="Tells what a trained model sees in image files."
    )
    add_model(parser)
    add_precision(parser)
    add_images(parser)
    parser.add_argument(
        "--top",
        type=count,
        metavar="N",
        help="classes told (default: 5; of several labels an image all from --threshold on)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="the least probability told (default: 0; of several labels an image 0.5)",
    )
    parser.add_argument("--json", action="store_true", help="an object a line on standard output")
    return parser
