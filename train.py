"""Train a Vision Transformer: python train.py --config configs/NAME.py (--help tells the rest)."""

import sys

from vit_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
