"""A run with every method of training on, killed: repeated, it is the run that was not.

Killed once by default; `VIT_JAX_STRESS=10` adds as many runs that are killed at random moments.
"""

import os
import pathlib
import random
import time

import numpy as np
import pytest

from tests.data.conftest import write_png
from tests.training.kills import check_none_left, kill, row_count, run_to_end, wait_for
from tests.training.runs import arrays, child, rows, tiny
from vit_jax.config import TrainConfig

STRESS = int(os.environ.get("VIT_JAX_STRESS", "0"))
LAST = 24  # 48 images in batches of 8, 4 epochs


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """Colour images of varying size, and all that may happen to them and to the weights."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 16)):
        for i in range(count):
            image = rng.integers(0, 256, (20 + i % 7, 31 - i % 5, 3), dtype=np.uint8)
            write_png(folder / split / "ab"[i % 2] / f"{i:02d}.png", image)
    return tiny(
        num_epochs=4,
        accumulation_steps=2,
        model__kwargs={
            "img_size": 16,
            "patch_size": 8,
            "num_classes": 2,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "drop_rate": 0.1,
            "drop_path_rate": 0.1,
        },
        data__source="folder",
        data__data_dir=str(folder),
        data__test_split=None,
        data__num_train_examples=None,
        data__batch_size=8,
        data__eval_batch_size=8,
        data__mean=(0.5, 0.5, 0.5),
        data__std=(0.25, 0.25, 0.25),
        data__random_resized_crop=True,
        data__interpolation="random",
        data__repeated_augmentation=3,
        data__padding_crop=2,
        data__horizontal_flip=True,
        data__rand_augment="rand-m9-mstd0.5-inc1",
        data__random_erasing=0.5,
        optimizer__name="lamb",
        optimizer__schedule="cosine",
        optimizer__schedule_unit="epoch",
        optimizer__warmup_epochs=1.0,
        optimizer__layer_decay=0.8,
        optimizer__decay_mask="matrices",
        optimizer__gradient_clip_norm=1.0,
        loss__label_smoothing=0.1,
        mix__mixup_alpha=0.8,
        mix__cutmix_alpha=1.0,
        ema__decay=0.9,
        ema__warmup=True,
        checkpoint__every_steps=3,
        log__every_steps=2,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reference(config, cache, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("reference")
    run_to_end(child(config, workdir, cache))
    return workdir


def check_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    assert rows(workdir) == rows(reference)
    found = arrays(workdir, LAST)
    assert any(name.startswith("ema/") for name in found)
    assert found == arrays(reference, LAST)


def test_killed_once(config, reference, tmp_path, cache) -> None:
    process = child(config, tmp_path, cache)
    wait_for(lambda: row_count(tmp_path) >= 5, process)
    assert process.poll() is None, "it ended before it could be killed"
    kill(process)
    run_to_end(child(config, tmp_path, cache))
    check_same(tmp_path, reference)


@pytest.mark.skipif(not STRESS, reason="set VIT_JAX_STRESS=10 to run it")
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("seed", range(STRESS))
def test_killed_at_random_moments(seed, config, reference, tmp_path, cache) -> None:
    choose = random.Random(seed)
    leaders = []
    for _ in range(choose.randint(1, 3)):
        process = child(config, tmp_path, cache)
        leaders.append(process.pid)
        begun = row_count(tmp_path)
        wait_for(lambda begun=begun: row_count(tmp_path) > begun, process)
        time.sleep(choose.uniform(0, 1.0))
        kill(process)
    leaders.append(run_to_end(child(config, tmp_path, cache)))
    check_same(tmp_path, reference)
    check_none_left(leaders)
