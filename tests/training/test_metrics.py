"""Counting what is right."""

import jax.numpy as jnp
import numpy as np

from vit_jax.training.metrics import Sums, label_ranks


def test_ranks_are_those_of_a_sort():
    generator = np.random.default_rng(1)
    logits = generator.integers(0, 4, (200, 9)).astype(np.float32)  # with many ties
    labels = generator.integers(0, 9, 200).astype(np.int32)
    order = np.argsort(-logits, axis=-1, kind="stable")
    wanted = (order == labels[:, None]).argmax(axis=-1)
    ranks = label_ranks(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_array_equal(ranks, wanted)
    np.testing.assert_array_equal(ranks == 0, logits.argmax(-1) == labels)


def test_equal_logits_do_not_make_every_answer_right():
    ranks = label_ranks(jnp.zeros((3, 10)), jnp.asarray([0, 1, 9]))
    assert ranks.tolist() == [0, 1, 9]


def test_nan_logits_are_never_right():
    logits = jnp.zeros((2, 4)).at[0, 3].set(jnp.nan)
    assert label_ranks(logits, jnp.asarray([0, 0])).tolist() == [4, 0]


def test_padding_does_not_count_even_if_it_is_nan():
    logits = jnp.asarray([[3.0, 0, 0, 0, 0, 0], [0.0] * 6, [jnp.nan] * 6])
    labels = jnp.asarray([0, 5, 0])
    mask = jnp.asarray([True, True, False])
    losses = jnp.asarray([1.0, 2.0, jnp.nan])
    batch = Sums.of_batch(losses, logits, labels, mask)
    total = Sums.zeros(jnp.dtype("float32")) + batch + batch
    assert total.averages() == {"loss": 1.5, "top1": 0.5, "top5": 0.5}
    assert int(total.count) == 4
