"""The Keras-style CIFAR-100 classifier: a small ViT trained from scratch.

    vit-jax prepare cifar100
    python train.py --config configs/cifar100_vit.py

Source of every number: "Implementing a Vision Transformer classifier in PyTorch", after the Keras
example by K. Salama. From its listings: AdamW with learning rate 1e-3
and weight decay 1e-4 on all parameters, held constant; batches of 32, the last short one of an
epoch dropped; 100 epochs; images resized to 72x72 (bilinear), turned by up to 7 degrees, mirrored
by half; patches of 6, width 64, 8 layers, 4 heads, feed-forward 128, head 2048 and 1024, dropout
0.1 and in the head 0.5. CIFAR-100's test split, permuted by a fixed seed, is cut into 70 percent
for validation and 30 for the test. Not from the text: CIFAR-100's usual channel statistics, which
it leaves undefined, and evaluation that counts every example, where it drops the last short batch.

The text reports about 50% top-1 and 77% top-5 on the validation split after 100 epochs.

Hardware, time and accuracy here: not measured.
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
                "num_classes": 100,
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
            name="cifar100",
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
