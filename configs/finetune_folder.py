"""Fine-tuning on a folder of one's own images, by hand: what `vit-jax finetune` writes for 60.

    python train.py --config configs/finetune_folder.py --config.init_from=WEIGHTS \\
        --config.model.name=NAME --config.data.data_dir=FOLDER --config.model.kwargs.num_classes=N

FOLDER holds a folder of images for each of N classes; it is cut into 70% for training and 30% for
validation. Where it is divided into train/ and val/, set --config.data.validation_split=validation.
WEIGHTS is a file, a folder, a run or `hf:OWNER/NAME`, and NAME the model that they are of. Mean,
standard deviation, crop and image size must be those of the weights; `vit-jax finetune` reads them
there.

AdamW, batches of 8, 30 epochs of cosine decay from 1.8e-4 after 3 of warm-up, layer-wise learning
rate decay .75 (as BEiT, 2106.08254), weight decay .05 on matrices, gradients clipped to norm 1,
label smoothing .1, random crops of at least 35% of the image, mirrored. With more images batches
grow and epochs become fewer: `vit_jax/config/recipe_by_size.py` has the rules. Set
horizontal_flip=False where left and right matter, as in digits and letters. The numbers are ours.

Hardware, time and accuracy: not measured as it stands. With a ViT-Ti/16 and 60 photographs of 3
classes: 241 s of processor time, compilation included, on two cores of a shared machine.
"""

from vit_jax.config import (
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=30,
        init_from="weights.safetensors",
        init_head="fresh",
        init_resize="source",
        model=ModelConfig(
            name="vit_small_patch16_224",
            kwargs={"img_size": 224, "num_classes": 3},
        ),
        data=DataConfig(
            source="folder",
            data_dir="photos",
            validation_split="validation+test",
            test_split=None,
            batch_size=8,
            eval_batch_size=24,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            horizontal_flip=True,
            random_resized_crop=True,
            crop_scale=(0.35, 1.0),
            eval_crop_fraction=0.9,
            eval_interpolation="bicubic",
        ),
        optimizer=OptimizerConfig(
            learning_rate=1.8e-4,
            schedule="cosine",
            warmup_epochs=3.0,
            weight_decay=0.05,
            decay_mask="matrices",
            layer_decay=0.75,
            gradient_clip_norm=1.0,
        ),
        loss=LossConfig(label_smoothing=0.1),
        log=LogConfig(every_steps=5),  # once an epoch
    )
