"""Training: one command trains, resumes, and survives."""

from vit_jax.training.interrupt import Interrupted
from vit_jax.training.loop import train

__all__ = ["Interrupted", "train"]
