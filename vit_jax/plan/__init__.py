"""Plans: a run compiled for TPUs or GPUs that are not there, and what follows from it."""
