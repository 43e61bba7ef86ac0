"""MAE: a small ViT pretrained on Imagenette without its labels.

    vit-jax prepare imagenette128
    python train.py --config configs/imagenette_mae.py
    vit-jax plot reconstruction runs/imagenette_mae PHOTO.jpg --out mae.png

The set is Imagenette (fast.ai) at 128x128 pixels.

From the release of "Masked Autoencoders Are Scalable Vision Learners" (2111.06377): 75% of the
patches hidden, the pixels of each patch normalised, AdamW with betas .9 and .95, weight decay .05
on matrices, cosine decay, random resized crops of at least a fifth of the image, mirrored. Ours: a
small model with a decoder of two blocks, batch 64, peak learning rate 1e-3, 20 epochs.

Hardware, time and loss: not measured to its end. Shortened to 3 epochs, half of one warm-up, on two
shared CPU cores: 5 minutes, validation loss 0.793; a linear probe of its encoder top-1
0.487 (after 4 steps: 0.440); one epoch of fine-tuning 0.364, and of the same model from scratch
0.351.
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
        num_epochs=20,
        model=ModelConfig(
            name="mae_vit_base_patch16",
            kwargs={
                "img_size": 128,
                "embed_dim": 192,
                "depth": 6,
                "num_heads": 3,
                "decoder": True,
                "decoder_embed_dim": 128,
                "decoder_depth": 2,
                "decoder_num_heads": 4,
                "decoder_mlp_dim": 512,
                "norm_pix_loss": True,
            },
        ),
        data=DataConfig(
            source="tfds",
            name="imagenette128",
            train_split="train",
            validation_split="validation",
            test_split=None,
            batch_size=64,
            eval_batch_size=128,
            image_size=128,
            horizontal_flip=True,
            random_resized_crop=True,
            crop_scale=(0.2, 1.0),
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_epochs=2.0,
            weight_decay=0.05,
            decay_mask="matrices",
            beta2=0.95,
        ),
        loss=LossConfig(kind="reconstruction"),
        checkpoint=CheckpointConfig(every_steps=150),
        log=LogConfig(every_steps=20),
    )
