"""T2T-ViT-7 from scratch on CIFAR-100.

    vit-jax prepare cifar100
    python train.py --config configs/cifar100_t2t_vit_7.py

From the release of "Tokens-to-Token ViT" (2101.11986), which trains this size on ImageNet: AdamW,
weight decay .03 on matrices, peak learning rate 1e-3, cosine decay to 1e-5, warm-up from 1e-6,
label smoothing .1, stochastic depth .1, mirrored images. Ours: images resized to 96x96 (6 by 6
tokens), batch 128, 100 epochs of which 5 of warm-up. CIFAR-100's test split, permuted by a fixed
seed, is cut into 70 percent for validation and 30 for the test, as in `cifar100_vit.py`.

Hardware, time and accuracy: not measured.
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
        num_epochs=100,
        model=ModelConfig(
            name="t2t_vit_7",
            kwargs={"num_classes": 100, "img_size": 96, "drop_path_rate": 0.1},
        ),
        data=DataConfig(
            source="tfds",
            name="cifar100",
            train_split="train",
            validation_split="shuffled(test)[:70%]",
            test_split="shuffled(test)[70%:]",
            batch_size=128,
            eval_batch_size=256,
            image_size=96,
            horizontal_flip=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_epochs=5.0,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            weight_decay=0.03,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        checkpoint=CheckpointConfig(every_steps=390),  # once an epoch
        log=LogConfig(every_steps=100),
    )
