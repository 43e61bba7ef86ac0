"""Models: one design a file, and the registry of their names."""
