"""`vit-jax plan`: compile a run for a TPU slice, without one."""

from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import read_recipe


def run(arguments: Sequence[str]) -> int:
    """`plan --config RECIPE --topology SLICE [--config.FIELD=VALUE ...]`: without the devices."""
    from vit_jax.plan import command, libtpu

    if {"-h", "-help", "--help"} & set(arguments):
        print(command.help_text())
        return 0
    # Before JAX is imported, which reading a config's last checks does.
    libtpu.prepare_environment()
    line = read_recipe(arguments, ("topology",), ("json", "search"))
    topology = command.topology_of(line)
    command.require_libtpu()
    jax_setup.set_up_jax()
    return command.run(line, topology)
