"""Numerical parity with PyTorch: stage by stage, forward, backward and through training.

`compare` measures a JAX model against a PyTorch one and names the first stage that departs;
`assert_parity` is its form for tests. Files of reference values, for machines without PyTorch, are
written by `write_golden` and read by `read_golden`.
"""

from vit_jax.parity.compare import assert_parity, compare
from vit_jax.parity.equinox import from_equinox
from vit_jax.parity.golden import read_golden
from vit_jax.parity.golden_writer import write_golden
from vit_jax.parity.inputs import Untouched
from vit_jax.parity.linen import from_linen
from vit_jax.parity.result import Diagnosis, Report, Row
from vit_jax.parity.sides import JaxFunction
from vit_jax.parity.values import OptimizerSpec, Reference

__all__ = [
    "Diagnosis",
    "JaxFunction",
    "OptimizerSpec",
    "Reference",
    "Report",
    "Row",
    "Untouched",
    "assert_parity",
    "compare",
    "from_equinox",
    "from_linen",
    "read_golden",
    "write_golden",
]
