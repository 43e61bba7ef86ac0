"""`python -m vit_jax.cli`."""

import sys

from vit_jax.cli import main

sys.exit(main())
