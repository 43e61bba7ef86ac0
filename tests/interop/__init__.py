"""Tests of vit_jax.interop."""
