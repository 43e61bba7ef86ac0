"""`vit-jax COMMAND ...`: one function a command.

JAX and all that needs it are imported inside the commands: `--help` and a mistake in a config
answer without them.
"""

import argparse
import ast
import importlib.metadata
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vit_jax.allocator import keep_freed_memory
from vit_jax.config.flags import help_text, parse_command_line

# JAX's own names of them.
_PROCESS_OPTIONS = ("coordinator_address", "num_processes", "process_id")
_PACKAGE = pathlib.Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    A mistake of the user's ends in one line on standard error and status 2; a bug keeps its
    traceback.

    Args:
      arguments: the command line without the program's name; None: this process's.

    Returns:
      The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Their flags are absl's: argparse does not see them.
        if arguments[:1] == ["train"]:
            return train(arguments[1:])
        if arguments[:1] == ["plan"]:
            return plan(arguments[1:])
        if arguments[:1] == ["plot"]:
            return plot(arguments[1:])
        options = _parser().parse_args(arguments)
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        status = _report(error)
        if status is None:
            raise
        return status


def train(arguments: Sequence[str]) -> int:
    """`train --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]`."""
    if {"-h", "-help", "--help"} & set(arguments):
        print(help_text("vit-jax train (or python train.py)"))
        return 0
    command = parse_command_line(arguments, _model_fields, ("workdir", *_PROCESS_OPTIONS))
    for note in command.notes:
        print(f"note: {note}", file=sys.stderr)
    set_up_jax()
    import jax

    from vit_jax.training.loop import train
    from vit_jax.training.processes import at_once_if_many, join

    join(*(command.options[name] for name in _PROCESS_OPTIONS))
    with at_once_if_many(_report):
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        train(command.config, command.options["workdir"] or f"runs/{command.recipe_path.stem}")
    return 0


def plan(arguments: Sequence[str]) -> int:
    """`plan --config RECIPE --topology SLICE [--config.FIELD=VALUE ...]`: without the devices."""
    from vit_jax.plan import command, libtpu

    if {"-h", "-help", "--help"} & set(arguments):
        print(command.help_text())
        return 0
    # Before JAX is imported, which reading a config's last checks does.
    libtpu.prepare_environment()
    line, topology, switches = command.read(arguments)
    for note in line.notes:
        print(f"note: {note}", file=sys.stderr)
    command.require_libtpu()
    set_up_jax()
    return command.run(line, topology, **switches)


def plot(arguments: Sequence[str]) -> int:
    """`plot augment --out FILE.png [--image FILE ...] [--config RECIPE [--config.FIELD=VALUE]]`."""
    options, rest = _plot_parser().parse_known_args(arguments)
    config = None
    if rest:
        line = parse_command_line(rest, _model_fields)
        for note in line.notes:
            print(f"note: {note}", file=sys.stderr)
        config = line.config
    set_up_jax()
    from vit_jax.plots.augmentations import plot_operations, plot_recipe

    out = pathlib.Path(options.out)
    if config is None:
        plot_operations(options.image, out)
    else:
        plot_recipe(config, options.image, out)
    print(f"wrote {out}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """`prepare NAME [--data-dir DIR] [--archive FILE]`."""
    from vit_jax.data.prepare import prepare

    print(f"prepared {prepare(options.name, options.data_dir, options.archive)}")
    return 0


def models(options: argparse.Namespace) -> int:
    """`models [GLOB]`: a table of names, parameters and image sizes."""
    import jax
    from flax import nnx

    from vit_jax.layers.variables import Frozen
    from vit_jax.models.registry import create_model, list_models

    names = list_models(options.glob)
    if not names:
        raise ValueError(f"no model matches {options.glob!r}; `vit-jax models` lists all")
    print(f"{'name':<36}{'parameters':>14}{'image size':>13}")
    for name in names:
        # Shapes only: no array is made.
        model = nnx.eval_shape(lambda name=name: create_model(name, rngs=nnx.Rngs(0)))
        # Frozen tables count, as in PyTorch's totals.
        arrays = nnx.state(model, (nnx.Param, Frozen))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(arrays))
        size = " x ".join(map(str, model.img_size))
        print(f"{name:<36}{parameters:>14,}{size:>13}", flush=True)  # a large model takes a second
    return 0


def convert(options: argparse.Namespace) -> int:
    """`convert SRC DST --model NAME ...`: weights of one form into those of another."""
    from rich.console import Console

    from vit_jax.interop.convert import convert, print_report

    head: Any = options.head
    if head is not None and head != "drop":
        if not re.fullmatch(r"\d+(,\d+)*", head):
            raise ValueError(f'--head: wanted "drop" or class indices such as 0,5,7, got {head!r}')
        head = [int(index) for index in head.split(",")]
    model, report = convert(
        options.source,
        options.target,
        options.model,
        fields=dict(_field(text) for text in options.field),
        to=options.to,
        ema=options.ema,
        resize=options.resize,
        head=head,
        in_chans=options.in_chans,
    )
    print_report(model, report, Console())
    print(f"wrote {options.target}")
    return 0


def parity(options: argparse.Namespace) -> int:
    """`parity NAME --reference FILE | --torch MODULE:CALLABLE ...`: a model beside PyTorch."""
    given = {key: value for key, value in vars(options).items() if key != "run"}
    given["fields"] = dict(_field(text) for text in given.pop("field"))
    set_up_jax(exact=True)
    from vit_jax.parity.command import Request, run

    return run(Request(**given))


def _field(text: str) -> tuple[str, Any]:
    """NAME=VALUE as the command line gives it; a value is a Python literal, else a string."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--field: wanted NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def set_up_jax(*, exact: bool = False) -> None:
    """What the package does to the process, and only on behalf of a command.

    Compiled programs are kept under the user's cache directory; JAX's own variable
    JAX_COMPILATION_CACHE_DIR names another place, and set to nothing turns that off. Tracebacks
    keep JAX's frames, so that one can tell an error that this package raised from one inside JAX.
    On a CPU calls return when they are done: one that was dispatched gives its temporaries back
    only after that, the next one may not find them, and the process grows by as much, time after
    time.

    Args:
      exact: allow float64, and multiply float32 matrices in float32 on every device.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "vit_jax", "xla"))
    # A process that was killed may leave half an entry in the cache: it is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_TRACEBACK_FILTERING" not in os.environ:
        jax.config.update("jax_traceback_filtering", "off")
    if exact:
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_matmul_precision", "highest")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vit-jax",
        description="Vision Transformers and Tokens-to-Token ViTs in JAX.",
        epilog="`vit-jax COMMAND --help` tells more.",
    )
    version = importlib.metadata.version("vit-jax")
    parser.add_argument("--version", action="version", version=f"vit-jax {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    # Listed for --help; main() has taken them before.
    commands.add_parser("train", help="train a model, or go on with a run", add_help=False)

    commands.add_parser("plan", help="compile a run for a TPU slice, without one", add_help=False)

    commands.add_parser("plot", help="draw what augmentation makes of images", add_help=False)

    command = commands.add_parser("prepare", help="download and prepare a data set, once")
    command.add_argument("name", metavar="NAME", help="a TFDS name, such as cifar100")
    command.add_argument(
        "--data-dir", metavar="DIR", help="where sets are kept (default: TFDS's own directory)"
    )
    command.add_argument("--archive", metavar="FILE", help="a local copy of the official archive")
    command.set_defaults(run=prepare)

    command = commands.add_parser("convert", help="weights of one form into those of another")
    command.add_argument(
        "source",
        metavar="SRC",
        help="a .safetensors, .pth or .npz file, a Hugging Face or Orbax folder, hf:OWNER/NAME, or "
        "a work directory",
    )
    command.add_argument("target", metavar="DST", help="a .safetensors or .pth file, or see --to")
    command.add_argument("--model", required=True, metavar="NAME", help="a registered model")
    command.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constructor field of the model; may be given again",
    )
    command.add_argument(
        "--to",
        default="timm",
        choices=("timm", "hf", "google", "orbax"),
        help="whose names: the model's own (DST .safetensors or .pth), Hugging Face's (a folder), "
        "Google's (.npz), or an Orbax folder (default: timm, the model's own)",
    )
    command.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="of a training checkpoint the averaged weights, or the raw ones (default: raw first)",
    )
    command.add_argument(
        "--resize",
        metavar="METHOD",
        help='resize position embeddings: "source" for the design\'s own way, or a method by name',
    )
    command.add_argument(
        "--head", metavar="WHAT", help='"drop" the head, or keep the classes 0,5,7'
    )
    command.add_argument(
        "--in-chans", action="store_true", help="adapt the patches to the model's channels"
    )
    command.set_defaults(run=convert)

    _add_parity(commands.add_parser("parity", help="hold a model, number by number, to PyTorch"))

    command = commands.add_parser("models", help="list models, their parameters and image sizes")
    command.add_argument(
        "glob", metavar="GLOB", nargs="?", default="*", help="such as 'vit_*' (default: all)"
    )
    command.set_defaults(run=models)
    return parser


def _plot_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vit-jax plot", description="Draws pictures.", allow_abbrev=False)
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    kind = kinds.add_parser(
        "augment",
        help="a sheet of the augmentation",
        description="Draws each operation and method of augmentation; with a recipe, what its "
        "training sees of its own images.",
        allow_abbrev=False,
        usage="%(prog)s --out FILE.png [--image FILE ...] "
        "[--config RECIPE [--config.FIELD=VALUE ...]]",
        epilog="--config and --config.FIELD=VALUE are those of `vit-jax train`.",
    )
    kind.add_argument("--out", required=True, metavar="FILE.png", help="the picture to write")
    kind.add_argument(
        "--image",
        nargs="+",
        default=[],
        metavar="FILE",
        help="images to show (default: the recipe's data; without a recipe, a made-up picture)",
    )
    return parser


def _add_parity(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Compares a model with PyTorch stage by stage. Exit status: 0, every difference is noise; "
        "1, one is not; 2, a mistake in the command."
    )
    command.epilog = "--torch and --make-golden import MODULE and call CALLABLE: they run its code."
    command.add_argument(
        "name", metavar="NAME", nargs="?", help="a registered model (default: the golden file's)"
    )
    command.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constructor field of the model; may be given again",
    )
    source = command.add_mutually_exclusive_group(required=True)
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
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="the model's weights (default: the module's or the golden file's own); a module that "
        "is given beside it has to have the same by itself",
    )
    command.add_argument("--grad", action="store_true", help="compare gradients too")
    command.add_argument(
        "--steps", type=int, metavar="N", help="compare N optimizer steps too, and gradients"
    )
    command.add_argument("--optimizer", choices=("adamw", "sgd"), help="(default: adamw)")
    command.add_argument("--images", metavar="FILE.npy", help="(B, H, W, C), normalised")
    command.add_argument("--batch", type=int, metavar="N", help="random images (default: 2)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="theirs (default: 0)")
    command.add_argument(
        "--precision",
        choices=("both", "float64", "float32"),
        default="both",
        help="(default: both)",
    )
    command.add_argument("--html", metavar="FILE", help="write a page with pictures too")
    command.add_argument("--json", action="store_true", help="print JSON in place of tables")
    command.add_argument(
        "--all", action="store_true", dest="everything", help="print every stage and parameter"
    )
    command.add_argument(
        "--image-shape", metavar="C,H,W", help="of a golden file to write (default: NAME's)"
    )
    command.add_argument("--classes", type=int, metavar="N", help="of a golden file to write")
    command.set_defaults(run=parity)


def _model_fields(name: str) -> Mapping[str, Any]:
    from vit_jax.models.registry import model_fields

    return model_fields(name)


def _report(error: Exception) -> int | None:
    """Prints what the user is told of an error, and returns the exit status; None for a bug."""
    message = _for_the_user(error)
    if message is None:
        return None
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _for_the_user(error: Exception) -> str | None:
    """What the user is told: what failed outside, or what we refuse; None for a bug.

    A ValueError that this package raises is a refusal; one from inside a library is our bug.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else str(error)
    if isinstance(error, RuntimeError):  # XLA's errors are of this kind
        if "RESOURCE_EXHAUSTED" in str(error):
            return (
                "the device is out of memory: lower config.data.batch_size, or set "
                f"config.model.kwargs.remat=blocks ({str(error)[:200]})"
            )
        return str(error) if "Unable to initialize backend" in str(error) else None
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    ours = frame is not None and _PACKAGE in pathlib.Path(frame.tb_frame.f_code.co_filename).parents
    return str(error) if ours else None


if __name__ == "__main__":
    sys.exit(main())
