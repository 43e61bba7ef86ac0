"""`vit-jax probe`: how well a model's features tell the classes of a data set."""

import argparse
import json
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_data, add_model, add_precision, count, load_given_model


def run(arguments: Sequence[str]) -> int:
    """`probe CHECKPOINT_OR_WEIGHTS --method knn|linear [data options]`."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    jax_setup.set_matmul_precision(options.matmul_precision)
    from vit_jax.inference.labelled import open_labelled
    from vit_jax.inference.probe import extract_features, probe
    from vit_jax.watching import watched

    train, test = (
        open_labelled(
            options.source,
            source=options.data_source,
            name=options.name,
            data_dir=options.data_dir,
            split=split,
            batch_size=options.batch_size,
        )
        for split in (options.train_split, options.test_split)
    )
    model = load_given_model(options)
    seen, asked = (
        extract_features(model, part.source, part.batch_size, part.num_workers, watched)
        for part in (train, test)
    )
    found = probe(
        seen, asked, options.method, k=options.k, temperature=options.temperature, l2=options.l2
    )
    if options.json:
        figures = {
            "method": found.method,
            "top1": found.top1,
            "train": seen.source,
            "num_train": found.num_train,
            "test": asked.source,
            "num_test": found.num_test,
            "num_features": found.num_features,
        }
        settings = {"k": options.k, "temperature": options.temperature}
        figures |= settings if found.method == "knn" else {"l2": options.l2}
        print(json.dumps(figures))
        return 0
    how = f"{options.k} nearest neighbours" if found.method == "knn" else "linear probe"
    print(
        f"top-1 {found.top1:.4f} on {found.num_test:,} images: {how} over {found.num_features} "
        f"features, from {found.num_train:,} images"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vit-jax probe",
        description="Tells classes from a model's features, which stay as they are: by a vote of "
        "the nearest neighbours, or by logistic regression. The data are the run's own unless "
        "others are named.",
        allow_abbrev=False,
    )
    add_model(parser)
    add_precision(parser)
    parser.add_argument(
        "--method", choices=("knn", "linear"), default="knn", help="how (default: knn)"
    )
    data = add_data(parser)
    data.add_argument(
        "--train-split",
        default="train",
        metavar="SPLIT",
        help="such as 'train[:5000]' (default: train)",
    )
    data.add_argument("--test-split", metavar="SPLIT", help="(default: the test split)")
    parser.add_argument(
        "--k", type=count, default=20, metavar="K", help="knn: neighbours that vote (default: 20)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.07,
        metavar="T",
        help="knn: a vote weighs exp(similarity / T) (default: 0.07)",
    )
    parser.add_argument(
        "--l2",
        type=float,
        default=1e-3,
        metavar="L2",
        help="linear: weight of the penalty (default: 0.001)",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    return parser
