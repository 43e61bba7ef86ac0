"""A small config that is valid, and the fields of two made-up models."""

import pathlib

import pytest

from vit_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

FIELDS = {
    "vit_a": {
        "img_size": 32,
        "num_classes": 1000,
        "depth": 12,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "qk_scale": None,
        "init_values": 1e-6,
        "global_pool": "token",
        "head_units": (8, 4),
        "dtype": float,
        "remat": "none",
        "scan_layers": False,
        "class_token": True,
    },
    "vit_b": {"num_classes": 1000, "width": 3},
}

RECIPE = """
from vit_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

def get_config():
    return TrainConfig(
        num_epochs=2,
        model=ModelConfig(name="vit_a", kwargs={"depth": 2, "num_classes": 10}),
        data=DataConfig(
            source="digits", batch_size=4, num_train_examples=100, mean=(.5,), std=(.2,)
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, gradient_clip_norm=1.0),
    )
"""


def model_fields(name: str) -> dict[str, object]:
    if name not in FIELDS:
        raise ValueError(f"unknown model {name!r}")
    return FIELDS[name]


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        num_epochs=2,
        model=ModelConfig(name="vit_a", kwargs={"img_size": (64, 96), "depth": 2}),
        data=DataConfig(source="digits", batch_size=4),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return str(path)
