"""Planted faults of models of images."""

from tests.parity.planted.base import fault, pair
from tests.parity.planted.edits import change, exchange, put

# What is true of every fault of a kind.
_GELU = "gelu|activation"
_SKIPPED_NORM = "missing_norm|missing_module|another_input|layer_norm|unchanged_input"
_RESIDUAL = "missing_term|residual|skip_connection"
_ORDER = "permuted_axes|reordered|flatten_order"
_GATE = "gate_order|gate|swapped_halves"
_TRAIN = {"mode": "train"}
_POSITION = "missing_term|position"

# ---------------------------------------------------------------------------- ConvNeXt

fault(
    "convnext tanh gelu",
    "convnext",
    "blocks.1",
    _GELU,
    "Block 1 has the tanh form of GELU for the exact one.",
    "blocks.1:tanh",
)
fault(
    "convnext no layer scale",
    "convnext",
    "blocks.0",
    "layer_scale|channel_factor",
    "Block 0 does not multiply its branch by gamma.",
    "blocks.0:no_gamma",
)
fault(
    "convnext layer scale of the sum",
    "convnext",
    "blocks.0",
    "layer_scale|residual|skip_connection",
    "Block 0 multiplies the sum by gamma, not the branch alone.",
    "blocks.0:gamma_after",
)
fault(
    "convnext norm epsilon",
    "convnext",
    "blocks.0.norm",
    "layer_norm_eps",
    "Epsilon 1e-5 for 1e-6.",
    edit=put("blocks.0.norm", epsilon=1e-5),
)
fault(
    "convnext norm over the map",
    "convnext",
    "stem_norm",
    "norm_axis|reduction_axis",
    "The norm reduces over height and width, not over channels.",
    edit=put("stem_norm", reduction_axes=(1, 2)),
)
fault(
    "convnext pooled by maximum",
    "convnext",
    "",
    "pool_kind|pooling",
    "The maximum over the map for its mean.",
    "max_pool",
)
fault(
    "convnext doubled residual",
    "convnext",
    "blocks.1",
    "doubled_term|residual|extra_term|skip_connection",
    "Block 1 adds its input twice.",
    "blocks.1:doubled",
)
fault(
    "convnext no residual",
    "convnext",
    "blocks.0",
    _RESIDUAL,
    "Block 0 does not add its input.",
    "blocks.0:no_residual",
)
fault(
    "convnext flipped kernel",
    "convnext",
    "blocks.0.dwconv",
    "flipped|reordered|patch_order",
    "The depthwise kernel is flipped in height and width: a convolution for a correlation.",
    arrays=change("blocks.0.dwconv.weight", lambda a: a[..., ::-1, ::-1]),
)
fault(
    "convnext blue first",
    "convnext",
    "",
    "flipped|reordered",
    "The colours are taken in the order blue, green, red.",
    "bgr",
)
pair("convnext norm epsilon", "convnext tanh gelu")

# ---------------------------------------------------------------------------- Swin

fault(
    "swin shifted the other way",
    "swin",
    "blocks.1",
    "cyclic_shift|rolled",
    "The map is rolled by +2 for -2, and back by -2.",
    "blocks.1:other_way",
)
fault(
    "swin shift not undone",
    "swin",
    "blocks.1",
    "cyclic_shift|rolled",
    "The map is not rolled back after the attention.",
    "blocks.1:not_undone",
)
fault(
    "swin windows put back by columns",
    "swin",
    "blocks.0",
    f"window_order|{_ORDER}",
    "Windows come back with their rows and columns exchanged.",
    "blocks.0:columns_first",
)
fault(
    "swin relative bias transposed",
    "swin",
    "blocks.0.attn",
    "permuted_axes|position|flipped",
    "The bias of (query, key) is that of (key, query).",
    "blocks.0.attn:bias_transposed",
)
fault(
    "swin no relative bias",
    "swin",
    "blocks.1.attn",
    f"{_POSITION}|missing_bias",
    "The relative bias is not added to the scores.",
    "blocks.1.attn:no_bias",
)
fault(
    "swin no shift mask",
    "swin",
    "blocks.1.attn",
    "mask|attention_mask",
    "Tokens of a shifted window that were no neighbours see one another.",
    "no_mask",
)
fault(
    "swin heads before q, k, v",
    "swin",
    "blocks.0.attn",
    f"qkv_order|head_layout|{_ORDER}",
    "The channels of qkv are read as (heads, 3, d), not (3, heads, d).",
    "blocks.0.attn:heads_first",
)
fault(
    "swin scale by d",
    "swin",
    "blocks.0.attn",
    "attention_scale|factor",
    "Queries are divided by d, not by its square root.",
    "scale_d",
)
fault(
    "swin softmax over queries",
    "swin",
    "blocks.1.attn",
    "softmax_axis|softmax|reduction_axis",
    "The softmax is over queries, not over keys.",
    "blocks.1.attn:over_queries",
)
fault(
    "swin merging by rows",
    "swin",
    "downsample",
    _ORDER,
    "The four pixels that are merged are joined row by row, not column by column.",
    "row_by_row",
)
pair("swin windows put back by columns", "swin merging by rows")

# ---------------------------------------------------------------------------- ResNet

fault(
    "resnet batch norm epsilon",
    "resnet",
    "layer1.bn1",
    "batch_norm_eps",
    "Epsilon 1e-3 for 1e-5.",
    edit=put("layer1.bn1", epsilon=1e-3),
)
fault(
    "resnet SAME at stride 2",
    "resnet",
    "conv1",
    "conv_padding|padding",
    "SAME pads (2, 3) at stride 2, PyTorch (3, 3).",
    edit=put("conv1", padding="SAME"),
)
fault(
    "resnet SAME max pool",
    "resnet",
    "|maxpool",
    "pool_padding|padding",
    "SAME pads the pooling by (0, 1), PyTorch by (1, 1).",
    "same_pool",
)
fault(
    "resnet average pool",
    "resnet",
    "|maxpool",
    "pool_kind|pooling",
    "The mean of a window for its maximum.",
    "avg_pool",
)
fault(
    "resnet no shortcut",
    "resnet",
    "layer1",
    _RESIDUAL,
    "The block's input is not added.",
    "layer1:no_shortcut",
)
fault(
    "resnet ReLU before the sum",
    "resnet",
    "layer1",
    "activation|residual",
    "ReLU is taken of the branch, not of the sum.",
    "layer1:relu_first",
)
fault(
    "resnet relu6",
    "resnet",
    "layer2",
    "clamp|activation|partial",
    "ReLU6 for ReLU: values over 6 are cut.",
    "layer2:relu6",
)
fault(
    "resnet odd pixels",
    "resnet",
    "layer2",
    "shifted|conv_padding|padding",
    "The strided shortcut reads the odd pixels, not the even ones.",
    "layer2:odd_pixels",
)
fault(
    "resnet running means exchanged",
    "resnet",
    "layer1.bn1",
    "exchanged_arrays|channel_offset|batch_norm",
    "The running means of the block's two norms are exchanged.",
    arrays=exchange("layer1.bn1.running_mean", "layer1.bn2.running_mean"),
)
fault(
    "resnet norm by the batch",
    "resnet",
    "bn1",
    "batch_norm|train_mode",
    "The first norm is left in train mode: it takes the batch's statistics.",
    edit=put("bn1", use_running_average=False),
)
pair("resnet batch norm epsilon", "resnet relu6")
fault(
    "resnet biased running variance",
    "resnet",
    "layer1.bn2",
    "batch_norm_unbiased",
    "Its running variance takes the variance over n; PyTorch's the one over n - 1.",
    edit=put("layer1.bn2", correction=0),
    settings=_TRAIN,
)
fault(
    "resnet momentum",
    "resnet",
    "bn1",
    "batch_norm_momentum",
    "PyTorch's momentum taken for Flax's, which is one minus it.",
    edit=put("bn1", momentum=0.1),
    settings=_TRAIN,
)

# ---------------------------------------------------------------------------- MobileNet

fault(
    "mobilenet sigmoid",
    "mobilenet",
    "blocks.0.se",
    "activation|gate",
    "The gate is a sigmoid for a hard sigmoid.",
    "blocks.0.se:sigmoid",
)
fault(
    "mobilenet sixth",
    "mobilenet",
    "blocks.0.se",
    "factor",
    "The hard sigmoid of the gate, by hand, divides by 5 and not by 6.",
    "blocks.0.se:sixth",
)
fault(
    "mobilenet three",
    "mobilenet",
    "blocks.1",
    "activation",
    "The hard swish, by hand, adds 2 and not 3.",
    "blocks.1:three",
)
fault(
    "mobilenet squeezed by maximum",
    "mobilenet",
    "blocks.0.se",
    "pool_kind|pooling",
    "The squeeze is a maximum for a mean.",
    "blocks.0.se:max",
)
fault(
    "mobilenet silu",
    "mobilenet",
    "blocks.0",
    "activation",
    "SiLU for hard swish.",
    "blocks.0:silu",
)
fault(
    "mobilenet no squeeze and excitation",
    "mobilenet",
    "blocks.1|blocks.1.se",
    "gate|channel_factor|missing_module|unchanged_input|another_input",
    "Block 1 leaves its squeeze and excitation out.",
    "blocks.1:no_se",
)
fault(
    "mobilenet relu",
    "mobilenet",
    "",
    "clamp|activation|partial",
    "ReLU for ReLU6: values over 6 are not cut.",
    "relu",
)
fault(
    "mobilenet SAME depthwise at stride 2",
    "mobilenet",
    "blocks.1.depthwise",
    "conv_padding|padding",
    "SAME pads (0, 1) at stride 2, PyTorch (1, 1).",
    edit=put("blocks.1.depthwise", padding="SAME"),
)
fault(
    "mobilenet dropout left on",
    "mobilenet",
    "|dropout",
    "dropout|train_mode",
    "Dropout is in train mode.",
    edit=put("dropout", deterministic=False),
)
fault(
    "mobilenet batch norm epsilon",
    "mobilenet",
    "blocks.0.bn0",
    "batch_norm_eps",
    "Epsilon 1e-5 for 1e-3.",
    edit=put("blocks.0.bn0", epsilon=1e-5),
)
pair("mobilenet relu", "mobilenet SAME depthwise at stride 2")

# ---------------------------------------------------------------------------- MLP-Mixer

fault(
    "mixer tanh gelu",
    "mixer",
    "blocks.1.mlp_channels",
    _GELU,
    "The tanh form of GELU for the exact one.",
    "blocks.1.mlp_channels:tanh",
)
fault(
    "mixer tokens not turned",
    "mixer",
    "blocks.0",
    "permuted_axes",
    "The mixing of tokens is given (tokens, channels), not (channels, tokens).",
    "blocks.0:not_transposed",
)
fault(
    "mixer tokens not turned back",
    "mixer",
    "blocks.1",
    "permuted_axes",
    "What the mixing of tokens gives is added without being turned back.",
    "blocks.1:not_back",
)
fault(
    "mixer no second norm",
    "mixer",
    "blocks.0|blocks.0.norm2",
    _SKIPPED_NORM,
    "The mixing of channels is given what is not normed.",
    "blocks.0:unnormed",
)
fault(
    "mixer patches by columns",
    "mixer",
    "",
    _ORDER,
    "Patches are put in a row column by column.",
    "columns_first",
)
fault(
    "mixer mean over channels",
    "mixer",
    "",
    "reduction_axis|pooling",
    "The mean is over channels, not over tokens.",
    "channel_mean",
)
pair("mixer patches by columns", "mixer mean over channels")

# ---------------------------------------------------------------------------- attention pooling

fault(
    "siglip positions flipped",
    "siglip",
    "",
    "flipped|position|reordered",
    "The positions are added in the reverse order.",
    "position_flipped",
)
fault("siglip no position", "siglip", "", _POSITION, "No position is added.", "no_position")
fault(
    "siglip residual of the norm",
    "siglip",
    "",
    "residual|another_input|skip_connection",
    "The normed value is added to the MLP's, not the value before the norm.",
    "residual_of_norm",
)
fault(
    "siglip not of unit length",
    "siglip",
    "",
    "missing_norm|l2_norm|unit_norm|row_factor|normalization|its length",
    "The answer is not divided by its length.",
    "no_unit",
)
fault(
    "siglip epsilon of the length",
    "siglip",
    "",
    "norm_eps|l2_norm_eps|l2_norm|eps|row_factor",
    "An epsilon of 1e-6 is added under the root of the answer's length.",
    "epsilon",
)
fault(
    "siglip kernel turned",
    "siglip",
    "patch_embed",
    "permuted_axes|transposed_kernel|patch_order",
    "The height and the width of the kernel of patches are exchanged.",
    arrays=change("patch_embed.weight", lambda a: a.swapaxes(2, 3)),
)
pair("siglip positions flipped", "siglip residual of the norm")
