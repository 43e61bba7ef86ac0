"""`vit-jax export`: a model as a folder that runs without this package."""

from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_model, add_precision, load_given_model


def run(arguments: Sequence[str]) -> int:
    """`export SOURCE OUT ...`: a model as a folder that runs without this package."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    jax_setup.set_matmul_precision(options.matmul_precision)
    from vit_jax.inference.export import check_platforms, export_model

    platforms = None if options.platforms is None else options.platforms.split(",")
    check_platforms(options.format, platforms)  # before the wait for the model
    model = load_given_model(options)
    report = export_model(
        model,
        options.out,
        format=options.format,
        platforms=platforms,
        input=options.input,
    )
    batches = " and ".join(map(str, report.batch_sizes))
    runs_on = ", ".join(report.platforms) or "ONNX runtimes"
    print(
        f"{model.spec.name} for {runs_on}, {report.size / 2**20:.1f} MiB; on "
        f"{report.verified_on}, with batches of {batches}, it differs from the live model by "
        f"at most {report.largest_difference:.2g} (allowed: {report.bound:.2g})"
    )
    print(f"wrote {report.folder}; run it: python {report.folder / 'run.py'} IMAGE")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax export",
        description="Writes a model as a folder that runs without this package: a program with the "
        "weights inside, for any batch size, verified against the live model.",
    )
    add_model(parser)
    add_precision(parser)
    parser.add_argument("out", metavar="OUT", help="the path of a new folder, or of an export")
    parser.add_argument(
        "--format",
        default="stablehlo",
        choices=("stablehlo", "onnx"),
        help="(default: stablehlo); onnx needs pip install 'vit-jax[onnx]'",
    )
    parser.add_argument(
        "--platforms",
        metavar="P,P",
        help="of stablehlo, some of cpu, cuda and tpu; one at least must be here (default: all)",
    )
    parser.add_argument(
        "--input",
        default="float32",
        choices=("float32", "uint8"),
        help="normalised images, or pixels that the program normalises (default: float32)",
    )
    return parser
