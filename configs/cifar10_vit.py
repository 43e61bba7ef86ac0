"""The Keras-style CIFAR-100 classifier and its training, on CIFAR-10.

    vit-jax prepare cifar10
    python train.py --config configs/cifar10_vit.py

Every number is that of configs/cifar100_vit.py, but the 10 classes and the set's own channel
statistics. Its source reports nothing for CIFAR-10.

Hardware, time and accuracy: two CPU cores; validation top-1 0.413 after one epoch. Its time, and
the whole 100 epochs: not measured.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=100,
        model=ModelConfig(
            name="vit_classifier",
            kwargs={
                "img_size": 72,
                "patch_size": 6,
                "num_classes": 10,
                "embed_dim": 64,
                "depth": 8,
                "num_heads": 4,
                "mlp_dim": 128,
                "mlp_head_units": (2048, 1024),
                "drop_rate": 0.1,
                "head_drop_rate": 0.5,
            },
        ),
        data=DataConfig(
            source="tfds",
            name="cifar10",
            train_split="train",
            validation_split="shuffled(test)[:70%]",
            test_split="shuffled(test)[70%:]",
            batch_size=32,
            eval_batch_size=256,
            image_size=72,
            rotation_degrees=7.0,
            horizontal_flip=True,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, decay_mask="all"),
        checkpoint=CheckpointConfig(every_steps=1562),  # once an epoch
        log=LogConfig(every_steps=100),
    )
