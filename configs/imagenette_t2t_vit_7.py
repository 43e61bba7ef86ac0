"""T2T-ViT-7 from scratch on Imagenette: ten classes of ImageNet, small enough for a CPU.

    vit-jax prepare imagenette128
    python train.py --config configs/imagenette_t2t_vit_7.py

The set is Imagenette (fast.ai) at 128x128 pixels.

From the release of "Tokens-to-Token ViT" (2101.11986): AdamW, weight decay .03 on matrices, cosine
decay to 1e-5, warm-up from 1e-6, label smoothing .1, mirrored images. Ours: batch 32, peak learning
rate 5e-4, 6 epochs of which one of warm-up; no stochastic depth in so short a run.

Hardware, time and accuracy: two CPU cores, shared with other work, so no time; validation top-1
0.361 after 295 steps (one epoch) and 0.485 after 590, on a copy of the set that was stored as JPEG;
stopped before its end.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=6,
        model=ModelConfig(name="t2t_vit_7", kwargs={"num_classes": 10, "img_size": 128}),
        data=DataConfig(
            source="tfds",
            name="imagenette128",
            train_split="train",
            validation_split="validation",
            test_split=None,
            batch_size=32,
            eval_batch_size=128,
            image_size=128,
            horizontal_flip=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="cosine",
            warmup_epochs=1.0,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            weight_decay=0.03,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        checkpoint=CheckpointConfig(every_steps=295),  # once an epoch
        log=LogConfig(every_steps=20),
    )
