"""A small ViT on CIFAR-100: half the parameters of `cifar100_vit`, a modern recipe.

    vit-jax prepare cifar100
    python train.py --config configs/cifar100_vit_plus.py

1,393,412 parameters (`cifar100_vit`: 2,618,916) and 100 epochs. The design is the Keras-style
classifier with its parameters in other places: images stay at 32x32 and are cut into 64 patches of
4x4 (`cifar100_vit` enlarges them to 72x72, 144 patches of 6x6), 6 layers of width 160 replace 8 of
64, the head's hidden layer has 512 units instead of 2048 and 1024, and there is no dropout.
Training: AdamW with decay on matrices alone, half the learning rate, warm-up and cosine decay,
random crops after padding, mirrored images, label smoothing, an average of the weights. A long run
may want more; RandAugment and wider padding cost accuracy in the short runs that were measured:
--config.data.rand_augment=rand-m5-n1-mstd0.5-inc1 --config.data.padding_crop=4
--config.mix.mixup_alpha=0.8 --config.mix.cutmix_alpha=1.0. The numbers are ours. Splits are those
of `cifar100_vit.py`.

Hardware, time and accuracy: not measured; `cifar10_vit_plus.py` is.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    EmaConfig,
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
            name="vit_classifier",
            kwargs={
                "img_size": 32,
                "patch_size": 4,
                "num_classes": 100,
                "embed_dim": 160,
                "depth": 6,
                "num_heads": 4,
                "mlp_dim": 320,
                "mlp_head_units": (512,),
                "drop_rate": 0.0,
                "head_drop_rate": 0.0,
            },
        ),
        data=DataConfig(
            source="tfds",
            name="cifar100",
            train_split="train",
            validation_split="shuffled(test)[:70%]",
            test_split="shuffled(test)[70%:]",
            batch_size=32,
            eval_batch_size=256,
            padding_crop=2,
            horizontal_flip=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="cosine",
            warmup_epochs=0.5,
            min_learning_rate=1e-5,
            weight_decay=0.05,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        ema=EmaConfig(decay=0.999, warmup=True),
        checkpoint=CheckpointConfig(every_steps=1562),  # once an epoch
        log=LogConfig(every_steps=100),
    )
