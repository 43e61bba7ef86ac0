"""`vit-jax plan`: compile a run for a TPU slice or a host of GPUs, without one."""

from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import RecipeParser, print_notes


def run(arguments: Sequence[str]) -> int:
    """`plan --config RECIPE --topology SLICE [--config.FIELD=VALUE ...]`: without the devices."""
    from vit_jax.plan import command, libtpu
    from vit_jax.plan.topology import parse_topology

    # Before JAX is imported, which reading a config's last checks does.
    libtpu.prepare_environment()
    options, recipe = _parser().read_both(arguments)
    topology = parse_topology(options.topology or "")
    command.require_compiler(topology)
    jax_setup.set_up_jax()
    from vit_jax.training.start import with_stated_fields

    config = recipe.config
    try:
        config, _ = with_stated_fields(config)
    except ValueError as error:  # weights that are needed elsewhere need not be here
        print_notes([f"{error}; planned without what they state"])
    return command.run(config, recipe.name, topology, search=options.search, json=options.json)


def _parser() -> RecipeParser:
    from vit_jax.plan.topology import CHIPS

    slices = "\n".join(f"  {chip.name + ':':<8}{', '.join(chip.sizes)}" for chip in CHIPS.values())
    parser = RecipeParser(
        "vit-jax plan",
        "Compile the train step of a run for a TPU slice or for GPUs, without them, and print its\n"
        "memory, operations, exchanges between chips, and a bound on its speed. TPUs need libtpu:\n"
        "pip install 'vit-jax[tpu]'; GPUs need three wheels, see docs/plan.md. Exit status: 0, it\n"
        "fits; 1, it does not; 2, a mistake in the command. A large model takes minutes; with\n"
        "--config.model.kwargs.scan_layers=true, fewer.",
        usage="%(prog)s --config RECIPE --topology GENERATION:SIZE [--search] [--json]\n"
        "                    [--config.FIELD=VALUE ...]",
        notes="slices (--topology GENERATION:SIZE, chips along each axis, or GPUs of a host), such "
        f"as:\n{slices}",
    )
    parser.add_argument("--topology", metavar="GENERATION:SIZE", help="the slice, see below")
    parser.add_argument(
        "--search",
        action="store_true",
        help="where the run does not fit, compile what would make it fit, until it does",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser
