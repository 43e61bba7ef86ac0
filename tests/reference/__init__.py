"""PyTorch models written for these tests, with the parameter names of the originals.

They share no code with vit_jax, so that live comparison covers sizes no stored fixture has.
"""
