"""Configuration of a training run: typed fields, checks, recipes, and the command line's flags."""

from vit_jax.config.recipes import find_recipe, load_recipe, recipe_names
from vit_jax.config.schema import (
    RESUMABLE_FIELDS,
    CheckpointConfig,
    DataConfig,
    DistillationConfig,
    EmaConfig,
    EvaluationConfig,
    LogConfig,
    LossConfig,
    MeshConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainingConfig,
)
from vit_jax.config.serialize import (
    check_resumable,
    diff,
    from_dict,
    load_config,
    to_dict,
)
from vit_jax.config.validate import check_kwargs_names, validate

__all__ = [
    "RESUMABLE_FIELDS",
    "CheckpointConfig",
    "DataConfig",
    "DistillationConfig",
    "EmaConfig",
    "EvaluationConfig",
    "LogConfig",
    "LossConfig",
    "MeshConfig",
    "MixConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainingConfig",
    "check_kwargs_names",
    "check_resumable",
    "diff",
    "find_recipe",
    "from_dict",
    "load_config",
    "load_recipe",
    "recipe_names",
    "to_dict",
    "validate",
]
