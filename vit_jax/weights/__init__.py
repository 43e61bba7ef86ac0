"""Weights in and out: names, layouts, files."""
