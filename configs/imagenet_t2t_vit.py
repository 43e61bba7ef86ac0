"""T2T-ViT from scratch on ImageNet-1k: the official recipe, by size.

    python train.py --config configs/imagenet_t2t_vit.py:14 --config.data.data_dir=DIR

The size after the colon is 7, 10, 12, 14, 19, 24, t_14, t_19 or t_24; `imagenet_t2t_vit_14` is
`imagenet_t2t_vit:14`. Without one it is 14.

ImageNet has to be fetched by hand and prepared with TFDS (`tfds build imagenet2012
--file_format=array_record`); DIR is the directory that then holds `imagenet2012/`.

From the release of the authors of "Tokens-to-Token ViT" (2101.11986): global batch 512, AdamW with
betas .9 and .999 and eps 1e-8, no clipping; learning rate (at 8 GPUs of 64) and weight decay by
size, see `SIZES`; decay on matrices alone; 300 epochs of cosine decay
to 1e-5 with 10 epochs of warm-up from 1e-6 and 10 of cooldown, the learning rate constant within
an epoch; label smoothing .1, stochastic depth .1; random resized crop with random interpolation,
mirrored images, RandAugment (rand-m9-mstd0.5-inc1), random erasing (.25, by pixel), mixup .8 and
CutMix 1.0, switching at .5; an average of the weights (EMA .99996); evaluation on the central .9 of
the image, bicubic. Published top-1: 7 71.7%, 14 81.5%,
19 81.9%, 24 82.3%, t_14 81.7%.

Hardware, time and accuracy: not measured.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    LogConfig,
    LossConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

# Learning rate and weight decay.
SIZES = {
    **dict.fromkeys(("7", "10", "12"), (1e-3, 0.03)),
    **dict.fromkeys(("14", "t_14"), (5e-4, 0.05)),
    **dict.fromkeys(("19", "24", "t_19", "t_24"), (5e-4, 0.065)),
}


def get_config(size: str = "14") -> TrainConfig:
    if size not in SIZES:
        raise ValueError(f"wanted a size of {', '.join(SIZES)}, got {size!r}")
    learning_rate, weight_decay = SIZES[size]
    fields = {"num_classes": 1000, "drop_path_rate": 0.1}
    return TrainConfig(
        num_epochs=310,
        model=ModelConfig(name=f"t2t_vit_{size}", kwargs=fields),
        data=DataConfig(
            source="tfds",
            name="imagenet2012",
            train_split="train",
            validation_split="validation",
            test_split=None,
            batch_size=512,
            eval_batch_size=512,
            image_size=224,
            horizontal_flip=True,
            random_resized_crop=True,
            interpolation="random",
            eval_interpolation="bicubic",
            rand_augment="rand-m9-mstd0.5-inc1",
            random_erasing=0.25,
            num_workers=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            schedule="cosine",
            schedule_unit="epoch",
            warmup_epochs=10.0,
            cooldown_epochs=10.0,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            weight_decay=weight_decay,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
        ema=EmaConfig(decay=0.99996),
        checkpoint=CheckpointConfig(every_steps=2502),  # once an epoch
        log=LogConfig(every_steps=50),
    )
