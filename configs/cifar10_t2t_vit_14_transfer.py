"""T2T-ViT-14 from ImageNet to CIFAR-10: fine-tuning, as the official release does it.

    vit-jax prepare cifar10
    python train.py --config configs/cifar10_t2t_vit_14_transfer.py --config.init_from=FILE

FILE is the release's checkpoint of T2T-ViT-14, 81.5_T2T_ViT_14.pth.tar, which has to be fetched by
hand (the default looks for it in the current directory), or any other weights of this model, also
a work directory of ours (--config.init_weights=raw where nothing was averaged).

From transfer_learning.py of the release of "Tokens-to-Token ViT" (2101.11986) and its README: from
the averaged weights with a new head; SGD with momentum .9 and weight decay 5e-4 on all parameters;
learning rate .05 for the head and .01 of it for all else, cosine decay to 2e-4 over 60 epochs, a
step each; batch 64, stochastic depth .1, plain cross entropy; images resized to 224x224, padded
with 28 pixels and cropped at random, mirrored; CIFAR-10's mean and the release's own deviations,
also for CIFAR-100. Published top-1: 98.3%.

Not as there: the learning rate of the body decays in proportion to the head's (there both end at
2e-4); the class token and the last norm are trained with the body (there no optimizer has them).
The test split alone is evaluated, once an epoch, as there: the best of them is not an estimate.

Hardware, time and accuracy: not measured.
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
        num_epochs=60,
        init_from="81.5_T2T_ViT_14.pth.tar",
        init_weights="ema",
        init_head="fresh",
        model=ModelConfig(name="t2t_vit_14", kwargs={"num_classes": 10, "drop_path_rate": 0.1}),
        data=DataConfig(
            source="tfds",
            name="cifar10",
            train_split="train",
            validation_split="test",
            test_split=None,
            batch_size=64,
            eval_batch_size=256,
            image_size=224,
            padding_crop=28,
            horizontal_flip=True,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            momentum=0.9,
            learning_rate=0.05,
            backbone_factor=0.01,
            schedule="cosine",
            schedule_unit="epoch",
            min_learning_rate=2e-4,
            weight_decay=5e-4,
            decay_mask="all",
        ),
        checkpoint=CheckpointConfig(every_steps=781),  # once an epoch
        log=LogConfig(every_steps=50),
    )
