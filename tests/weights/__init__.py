"""Tests of vit_jax.weights."""
