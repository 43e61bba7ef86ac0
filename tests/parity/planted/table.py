"""All rows: importing it fills the tables of `base`."""

from tests.parity.planted import (
    clean,
    clean_foreign,  # noqa: F401
    clean_parts,  # noqa: F401
    convnets,  # noqa: F401
    faults_causal,  # noqa: F401
    faults_images,  # noqa: F401
    faults_maps,  # noqa: F401
    faults_text,  # noqa: F401
    faults_training,  # noqa: F401
    maps,  # noqa: F401
    rotary,  # noqa: F401
    small,  # noqa: F401
    text,  # noqa: F401
    tokens,  # noqa: F401
    vision,  # noqa: F401
)
from tests.parity.planted.base import ARCHITECTURES, CLEAN, FAULTS

clean.register_architectures()

__all__ = ["ARCHITECTURES", "CLEAN", "FAULTS"]
