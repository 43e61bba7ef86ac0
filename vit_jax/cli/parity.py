"""`vit-jax parity`: hold a model, number by number, to PyTorch."""

from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_fields, to_fields


def run(arguments: Sequence[str]) -> int:
    """`parity NAME --reference FILE | --torch MODULE:CALLABLE ...`: a model beside PyTorch."""
    options = _parser().parse_args(arguments)
    given = vars(options)
    given["fields"] = to_fields(given.pop("field"))
    jax_setup.set_up_jax(exact=True)
    from vit_jax.parity.command import Request
    from vit_jax.parity.command import run as compare

    return compare(Request(**given))


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax parity",
        description="Compares a model with PyTorch stage by stage. Exit status: 0, every "
        "difference is noise; 1, one is not; 2, a mistake in the command.",
        epilog="--torch and --make-golden import MODULE and call CALLABLE: they run its code.",
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a registered model (default: the golden file's)"
    )
    add_fields(parser)
    source = parser.add_mutually_exclusive_group(required=True)
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
    parser.add_argument("--batch", type=int, metavar="N", help="random images (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="theirs (default: 0)")
    parser.add_argument(
        "--precision",
        choices=("both", "float64", "float32"),
        default="both",
        help="(default: both)",
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
