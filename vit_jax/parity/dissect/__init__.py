"""Why a model departs, from the values: what the reference would have to compute to give ours.

The calls that PyTorch makes in the module where the first value departs are made again with one of
them changed, until the model's wrong value comes out. What is found is so to rounding, whatever the
architecture is.
"""
