"""The quick random streams draw what Flax's own do."""

from collections.abc import Callable
from unittest import mock

import chex
import jax
import pytest
from flax import nnx

from vit_jax.models.streams import Streams


def draws(streams: Callable[[int], nnx.Rngs]) -> list[jax.Array]:
    rngs = streams(3)
    keys = [rngs.params(), rngs.dropout(), rngs(), rngs.fork().params(), rngs.params()]
    return [jax.random.key_data(key) for key in keys]


@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_keys_are_those_of_flax(how: Callable) -> None:
    chex.assert_trees_all_equal(how(lambda: draws(Streams))(), how(lambda: draws(nnx.Rngs))())


def test_no_traced_count_is_asked_for_its_sharding() -> None:
    """JAX answers with an error text about the whole trace, however long."""
    with mock.patch.object(jax.core.Tracer, "sharding", property(lambda _: pytest.fail("asked"))):
        jax.eval_shape(lambda: Streams(3).params())
        with pytest.raises(pytest.fail.Exception):  # the reason for `Streams`
            jax.eval_shape(lambda: nnx.Rngs(3).params())
