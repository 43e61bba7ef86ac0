"""`vit-jax embed`: features of image files, and which of them are alike."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from vit_jax.storage import check_output

if TYPE_CHECKING:
    from vit_jax.inference.embed import Embeddings

_LONGEST = 22  # characters of a file's name under its picture


def run(arguments: Sequence[str]) -> int:
    """`embed CHECKPOINT_OR_WEIGHTS IMAGE... [--out FILE.npz]`; 1 if an image could not be read."""
    options = _parser().parse_args(arguments)
    if not (options.out or options.neighbours or options.pairs):
        raise ValueError(
            "nothing to make: wanted --out FILE.npz, --neighbours PICTURE.png or --pairs N"
        )
    paths = given_images(options)
    jax_setup.set_up_jax()
    jax_setup.set_matmul_precision(options.matmul_precision)
    from vit_jax.inference.embed import FORMATS, closest_pairs, embed, save_embeddings
    from vit_jax.plots import figure

    for out, kinds in ((options.out, FORMATS), (options.neighbours, figure.FORMATS)):
        if out:
            check_output(pathlib.Path(out), kinds)
    model = load_given_model(options)
    found = embed(model, paths, options.batch_size)
    for path, why in found.unread.items():
        print(f"skipped {printable(path)}: {printable(why)}", file=sys.stderr)
    if not found.paths:
        raise ValueError(f"none of the {len(paths):,} images could be read")
    if options.out:
        save_embeddings(found, model, options.out)
    pairs = closest_pairs(found.features, options.pairs) if options.pairs else []
    for first, second, similarity in pairs:
        names = found.paths[first], found.paths[second]
        if options.json:
            print(json.dumps({"pair": names, "similarity": similarity}))
        else:
            print(f"{similarity:.4f}  {printable(names[0])}  {printable(names[1])}")
    if options.neighbours:
        _draw(model, found, options)
    made = [name for name in (options.out, options.neighbours) if name]
    number, width = found.features.shape
    print(
        f"{number:,} images, {width:,} features each, {len(found.unread):,} could not be read"
        + (f"; wrote {', '.join(map(printable, made))}" if made else ""),
        file=sys.stderr,
    )
    return 1 if found.unread else 0


def _draw(model: Any, found: "Embeddings", options: argparse.Namespace) -> None:
    """A row for each of the first images: it and its nearest neighbours."""
    from vit_jax.inference.embed import nearest
    from vit_jax.inference.images import read_image
    from vit_jax.inference.preprocess import shown
    from vit_jax.plots.neighbours import plot_neighbours

    indices, similarities = nearest(found.features, options.columns)

    def picture(number: int, said: str) -> tuple[Any, str]:
        path = found.paths[number]
        name = printable("/".join(pathlib.Path(path).parts[-2:]))
        name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        return shown(model, read_image(path, model.in_chans)), said + name

    rows = []
    for number in range(min(options.rows, len(found.paths))):
        near = zip(indices[number], similarities[number], strict=True)
        rows.append(
            [
                picture(number, ""),
                *(picture(int(i), f"{similarity:.3f} ") for i, similarity in near),
            ]
        )
    plot_neighbours(rows, options.neighbours)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vit-jax embed",
        description="Image files as vectors: what the last layer of a model's head reads. Alike "
        "are those of a high cosine similarity.",
    )
    add_model(parser)
    add_precision(parser)
    add_images(parser)
    parser.add_argument(
        "--out", metavar="FILE.npz", help="takes features (N, D), paths (N,) and the model's name"
    )
    parser.add_argument(
        "--neighbours",
        metavar="PICTURE",
        help="draws the first images beside those most like them",
    )
    parser.add_argument(
        "--rows", type=count, default=8, metavar="N", help="images that are drawn (default: 8)"
    )
    parser.add_argument(
        "--columns", type=count, default=6, metavar="N", help="neighbours of each (default: 6)"
    )
    parser.add_argument(
        "--pairs", type=count, metavar="N", help="tells the N pairs that are most alike"
    )
    parser.add_argument("--json", action="store_true", help="a pair a line as an object")
    return parser
