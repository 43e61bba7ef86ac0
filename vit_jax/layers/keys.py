"""Random keys that may be absent: a key means training, `None` means evaluation."""

from collections.abc import Sequence

import jax


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Returns `count` keys derived from `key`, or as many `None`."""
    return [None] * count if key is None else list(jax.random.split(key, count))
