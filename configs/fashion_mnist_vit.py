"""A small ViT on Fashion-MNIST: 60,000 grey images of clothes, 28x28 pixels.

    vit-jax prepare fashion_mnist --archive DIR
    python train.py --config configs/fashion_mnist_vit.py

DIR holds the four official IDX files; in Debian `apt install dataset-fashion-mnist` puts them into
/usr/share/datasets/fashion-mnist. The design is timm's ViT at a size for this data: patches of 4x4,
6 layers of width 128 with 4 heads, the mean of 49 patches in place of a class token: 804,874
parameters. 2,000 of the 60,000 training images validate; the test set is seen once, at the end. A
public from-scratch repository reports 92.3 % on it, of a ViT of width 64 after 200 epochs. The
other numbers are ours.

What helps is the start: `weight_init="mimetic"` (Trockman and Kolter 2023). Without it, and without
shifts of a pixel, 25 epochs reached 90.9 %, with 96.1 % of the training images right: it overfits.
Drop path of 0.1 learns slower: after 300 updates 0.726 training top-1 against 0.776.

Hardware, time and test top-1: two CPU cores, 68 minutes in two sittings (stopped after 13.6 epochs
and resumed), other work beside some of them: 93.0 %, with averaged weights too. At its end 94.4 %
of the training images and 92.45 % of the validation images are right.
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
        num_epochs=26,
        model=ModelConfig(
            name="vit_tiny_patch16_224",
            kwargs={
                "img_size": 28,
                "patch_size": 4,
                "in_chans": 1,
                "num_classes": 10,
                "embed_dim": 128,
                "depth": 6,
                "num_heads": 4,
                "mlp_ratio": 2.0,
                "class_token": False,
                "global_pool": "avg",
                "weight_init": "mimetic",
            },
        ),
        data=DataConfig(
            source="tfds",
            name="fashion_mnist",
            train_split="shuffled(train)[2000:]",
            validation_split="shuffled(train)[:2000]",
            test_split="test",
            batch_size=64,
            eval_batch_size=250,
            horizontal_flip=True,
            padding_crop=1,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_epochs=1.0,
            weight_decay=0.05,
            decay_mask="matrices",
            gradient_clip_norm=1.0,
        ),
        loss=LossConfig(label_smoothing=0.1),
        ema=EmaConfig(decay=0.999, warmup=True),
        checkpoint=CheckpointConfig(every_steps=453),
        log=LogConfig(every_steps=100),
    )
