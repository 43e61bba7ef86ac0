"""`vit-jax train`: train a model, or go on with a run."""

from collections.abc import Sequence

from vit_jax.allocator import keep_freed_memory
from vit_jax.cli import jax_setup
from vit_jax.cli.errors import report
from vit_jax.cli.parsing import read_recipe
from vit_jax.config.flags import help_text

# JAX's own names of them.
_PROCESS_OPTIONS = ("coordinator_address", "num_processes", "process_id")


def run(arguments: Sequence[str]) -> int:
    """`train --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]`."""
    if {"-h", "-help", "--help"} & set(arguments):
        print(help_text("vit-jax train (or python train.py)"))
        return 0
    command = read_recipe(arguments, ("workdir", *_PROCESS_OPTIONS))
    jax_setup.set_up_jax()
    import jax

    from vit_jax.training.loop import train
    from vit_jax.training.processes import at_once_if_many, join

    join(*(command.options[name] for name in _PROCESS_OPTIONS))
    with at_once_if_many(report):
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        train(command.config, command.options["workdir"] or f"runs/{command.recipe_path.stem}")
    return 0
