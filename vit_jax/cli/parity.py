"""`vit-jax parity`: hold a model, number by number, to PyTorch."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_fields, print_notes, to_fields


def run(arguments: Sequence[str]) -> int:
    """`parity NAME --reference FILE | --torch MODULE:CALLABLE ...`: a model beside PyTorch."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = vars(options)
    given["fields"] = to_fields(given.pop("field"))
    jax_setup.set_up_jax(exact=True)
    if (image := given.pop("image")) is not None:
        others = [
            flag for flag in ("weights", "steps", "images", "batch") if given[flag] is not None
        ]
        if options.name is None or others or options.grad:
            raise ValueError(
                "--image: wanted the hf:OWNER/NAME or the folder of published weights before it, "
                "and no other data or training"
            )
        return _published(options, Path(image))
    from vit_jax.parity.command import Request
    from vit_jax.parity.command import run as compare

    return compare(Request(**given))


def _published(options: argparse.Namespace, image: Path) -> int:
    """Published weights beside transformers' own model, on a photograph."""
    import jax.numpy as jnp
    import numpy as np
    from rich.console import Console

    from vit_jax.inference.preprocess import preprocess
    from vit_jax.parity.published import compare_published
    from vit_jax.parity.render import print_report, to_json, write_html
    from vit_jax.weights.hub import fetch
    from vit_jax.weights.load import load_with_notes
    from vit_jax.weights.run_folder import HUB_PREFIX

    name = options.name
    is_of_hub = name.startswith(HUB_PREFIX)
    folder = fetch(name.removeprefix(HUB_PREFIX)) if is_of_hub else Path(name)
    if not folder.is_dir():
        raise ValueError(f"--image: wanted hf:OWNER/NAME or a folder of transformers, got {name!r}")
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    model, notes = load_with_notes(name, fields={**wide, **options.fields})
    print_notes(notes)
    images = np.asarray(preprocess(model, [image]), np.float64)
    found = compare_published(model, folder, images, image)
    if options.html is not None:
        write_html(found.report, options.html)
    if options.json:
        words = {"architecture": found.architecture, "preprocessing": found.preparation}
        print(json.dumps({**to_json(found.report), **words}, indent=1, allow_nan=False))
    else:
        print_report(found.report, Console(), everything=options.everything)
        print("\n".join(found.lines()))
    return 0 if found.report.ok else 1


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax parity",
        description="Compares a model with PyTorch stage by stage. Exit status: 0, every "
        "difference is noise; 1, one is not; 2, a mistake in the command.",
        epilog="MODULE:CALLABLE imports MODULE and calls CALLABLE: they run its code.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="a registered model (default: the golden file's), MODULE:CALLABLE of yours, or with "
        "--image published weights",
    )
    add_fields(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--image",
        metavar="FILE",
        help="a photograph: compare published weights, NAME as hf:OWNER/NAME or a folder, with "
        "transformers' own model of them",
    )
    source.add_argument("--reference", metavar="FILE", help="a golden file; needs no PyTorch")
    source.add_argument(
        "--torch",
        metavar="MODULE:CALLABLE",
        help="what returns a torch.nn.Module; MODULE is looked for in the current directory too",
    )
    source.add_argument(
        "--make-golden",
        nargs=2,
        metavar=("MODULE:CALLABLE", "OUT"),
        help="write a golden file of it, with gradients and training steps",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="the model's weights (default: the module's or the golden file's own); a module that "
        "is given beside it has to have the same by itself",
    )
    parser.add_argument("--grad", action="store_true", help="compare gradients too")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="compare N optimizer steps too, and gradients"
    )
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), help="(default: adamw)")
    parser.add_argument("--images", metavar="FILE.npy", help="(B, H, W, C), normalised")
    parser.add_argument(
        "--inputs", metavar="MODULE:CALLABLE", help="what returns the inputs, one or several"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="random images (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="theirs (default: 0)")
    parser.add_argument(
        "--precision",
        choices=("both", "float64", "float32", "bfloat16", "float16"),
        default="both",
        help="(default: both, float64 and float32)",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures too")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument(
        "--all", action="store_true", dest="everything", help="print every stage and parameter"
    )
    parser.add_argument(
        "--image-shape", metavar="C,H,W", help="of a golden file to write (default: NAME's)"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="of a golden file to write")
    return parser
