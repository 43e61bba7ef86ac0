"""Explanations in words that a row does not accept, which a person has read and found true."""

JUDGED: dict[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "convnext no layer scale": "missing_term",
        "swin windows put back by columns": "head_layout permuted_axes",
        "swin windows put back by columns + merging by rows": "head_layout permuted_axes",
        "resnet ReLU before the sum": "order",
        "resnet odd pixels": "partial",
        "resnet norm by the batch": "batch_norm_mode",
        "siglip not of unit length": "normalize",
        "siglip epsilon of the length": "channel_factor",
        "unet strided groups": "norm_axis",
        "vae shaped channels last": "permuted_axes",
        "vae deviation squared": "factor",
        "detector anchors inside of classes": "permuted_axes",
        "detector classes by columns": "permuted_axes",
        "detector rows before columns": "swapped_halves",
        "detector no half pixel": "offset",
        "perceiver summed": "pool_kind",
        "perceiver no scale": "factor",
        "gpt scores of one head": "partial",
        "gpt no mask": "softmax",
        "clip end of the row": "partial another_input",
        "clip no exp": "missing_term",
        "t5 unscaled head": "factor",
        "llama norm epsilon": "eps",
        "llama norm epsilon + rope interleaved": "eps",
        "llama centred norm": "extra_term",
        "llama epsilon outside of the root": "order",
        "llama rope interleaved": "reordered",
        "llama rope backwards": "swapped_halves",
        "llama keys not rotated": "another_input",
        "llama no up": "missing_term",
        "causal centred": "rolled padding",
    }.items()
}
