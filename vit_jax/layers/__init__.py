"""Layers: plain arguments, no configuration, no names of models."""
