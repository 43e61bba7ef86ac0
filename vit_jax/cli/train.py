"""`vit-jax train`: train a model, or go on with a run."""

from collections.abc import Sequence

from vit_jax.allocator import keep_freed_memory
from vit_jax.cli import jax_setup
from vit_jax.cli.errors import report
from vit_jax.cli.parsing import RecipeParser
from vit_jax.config.schema import TrainConfig


def run(arguments: Sequence[str]) -> int:
    """`train --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]`."""
    options, recipe = _parser().read_both(arguments)
    jax_setup.set_up_jax(deterministic=recipe.config.training.deterministic)
    from vit_jax.training.processes import at_once_if_many, join

    join(options.coordinator_address, options.num_processes, options.process_id)
    with at_once_if_many(report):
        train_and_draw(recipe.config, options.workdir or f"runs/{recipe.name}")
    return 0


def train_and_draw(config: TrainConfig, workdir: str) -> None:
    """Trains, or goes on with the run in `workdir`, and draws its curves.

    Raises:
      ValueError: see `vit_jax.training.train`.
    """
    import jax

    from vit_jax.training.loop import train
    from vit_jax.training.processes import is_first

    if jax.default_backend() == "cpu":
        keep_freed_memory()
    train(config, workdir)
    if is_first():
        _draw_curves(workdir)


def _draw_curves(workdir: str) -> None:
    """Draws `plots/loss.png` and `plots/accuracy.png` of a finished run, once."""
    from vit_jax.plots.curves import plot_curves
    from vit_jax.storage import run_path
    from vit_jax.training.records import read_rows
    from vit_jax.training.workdir import METRICS_FILE, writing

    path = run_path(workdir)
    if (path / "plots" / "accuracy.png").exists():
        return
    rows = read_rows(path / METRICS_FILE)
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
