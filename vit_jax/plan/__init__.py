"""Plans: a run compiled for a TPU slice that is not there, and what follows from it."""
