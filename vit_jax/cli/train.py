"""`vit-jax train`: train a model, or go on with a run."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_jax.allocator import keep_freed_memory
from vit_jax.cli import jax_setup
from vit_jax.cli.errors import report
from vit_jax.cli.parsing import RecipeParser
from vit_jax.config.schema import TrainConfig
from vit_jax.storage import run_path

if TYPE_CHECKING:
    from vit_jax.training.records import Row


def run(arguments: Sequence[str]) -> int:
    """`train --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]`."""
    options, recipe = _parser().read_both(arguments)
    recipe.config.log.profile |= options.profile
    jax_setup.set_up_jax(deterministic=recipe.config.training.deterministic)
    from vit_jax.training.processes import at_once_if_many, join

    join(options.coordinator_address, options.num_processes, options.process_id)
    workdir = options.workdir or f"runs/{recipe.name}"
    with at_once_if_many(report):
        train_and_draw(recipe.config, workdir)
        _say_results(recipe.config, workdir)
    return 0


def _say_results(config: TrainConfig, workdir: str) -> None:
    """Where the results are, and what to do next."""
    from vit_jax.training.processes import is_first
    from vit_jax.training.profiling import FOLDER
    from vit_jax.weights.run_folder import BEST

    if config.log.progress == "none" or not is_first():
        return
    has_best = config.data.validation_split and config.checkpoint.keep_best
    model = shlex.quote(workdir + BEST * bool(has_best))
    pictures = ", ".join(sorted(path.name for path in (run_path(workdir) / "plots").glob("*.png")))
    print(f"results: {workdir}: metrics.jsonl, checkpoints/, plots/ ({pictures})")
    if config.log.profile and (run_path(workdir) / FOLDER).exists():  # not of too few updates
        print(f"trace: xprof --logdir {shlex.quote(workdir)}/{FOLDER}")
    if config.loss.kind == "reconstruction":  # without a head there is nothing to predict
        further = f"vit-jax plot reconstruction {model} IMAGE --out mae.png; vit-jax probe {model}"
    else:
        further = f"vit-jax evaluate {model}; vit-jax predict {model} IMAGE..."
    print(f"next: {further}", flush=True)


def train_and_draw(config: TrainConfig, workdir: str) -> None:
    """Trains, or goes on with the run in `workdir`, and draws its curves.

    Raises:
      ValueError: see `vit_jax.training.train`.
    """
    import jax

    from vit_jax.training.loop import train
    from vit_jax.training.processes import is_first
    from vit_jax.training.records import read_rows
    from vit_jax.training.workdir import METRICS_FILE

    if jax.default_backend() == "cpu":
        keep_freed_memory()
    measured = run_path(workdir) / METRICS_FILE
    before = read_rows(measured) if is_first() else []
    train(config, workdir)
    if is_first() and (before != (rows := read_rows(measured)) or not _is_drawn(workdir)):
        _draw_curves(rows, workdir)


def _is_drawn(workdir: str) -> bool:
    return (run_path(workdir) / "plots" / "loss.png").exists()


def _draw_curves(rows: "list[Row]", workdir: str) -> None:
    """Draws the pictures in `plots/` of a finished run."""
    from vit_jax.plots.curves import plot_curves
    from vit_jax.training.workdir import writing

    path = run_path(workdir)
    with writing(path, "the run is finished, and its curves are drawn"):
        plot_curves(rows, path / "plots")


def _parser() -> RecipeParser:
    parser = RecipeParser(
        "vit-jax train",
        "Train a Vision Transformer. The same command on the same work directory resumes.",
        usage="%(prog)s --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="checkpoints, metrics and plots go here (default: runs/RECIPE)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="trace three updates for xprof, as --config.log.profile=true",
    )
    hosts = parser.add_argument_group(
        "many hosts",
        "Each runs this command, with one work directory that all see. JAX finds the hosts of\n"
        "a Cloud TPU, of SLURM, Open MPI up to 4 and Kubernetes by itself; else:",
    )
    hosts.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="of process 0, a free port"
    )
    hosts.add_argument(
        "--num_processes", metavar="N", help="how many there are; 1: this one is alone"
    )
    hosts.add_argument("--process_id", metavar="I", help="which one this is, from 0")
    return parser
