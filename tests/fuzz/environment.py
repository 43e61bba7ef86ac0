"""Sets the variables that JAX reads when it is imported: to be imported before it."""

import os

from tests import compilation

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(compilation.variables())
os.environ["HF_HUB_OFFLINE"] = "1"
