"""Planted faults of models that answer with maps or with several arrays."""

from tests.parity.planted.base import fault, pair
from tests.parity.planted.edits import put

_ORDER = "permuted_axes|reordered|flatten_order"
_MASK = "mask|attention_mask"

# ---------------------------------------------------------------------------- U-Net

fault(
    "unet two groups",
    "unet",
    "middle.norm1",
    "group_norm_groups|group_norm",
    "Two groups for four.",
    "middle.norm1:two_groups",
)
fault(
    "unet strided groups",
    "unet",
    "block1.norm2",
    "group_norm|group_norm_groups|reordered",
    "A group has every fourth channel, not neighbouring ones.",
    "block1.norm2:strided_groups",
)
fault(
    "unet norm of each pixel",
    "unet",
    "block1.norm1",
    "norm_axis|group_norm|reduction_axis",
    "A group's statistics are those of a pixel, not of the map.",
    "block1.norm1:each_pixel",
)
fault(
    "unet unbiased variance",
    "unet",
    "middle.norm2",
    "group_norm|ddof|variance|the unbiased",
    "The variance is divided by n - 1.",
    "middle.norm2:ddof",
)
fault(
    "unet group norm epsilon",
    "unet",
    "block2.norm1",
    "group_norm_eps|group_norm",
    "Epsilon 1e-6 (Flax's) for 1e-5.",
    edit=put("block2.norm1", eps=1e-6),
)
fault(
    "unet kernel not flipped",
    "unet",
    "up",
    "conv_transpose_flip|flipped",
    "The transposed convolution has its kernel flipped in height and width.",
    "unflipped",
)
fault(
    "unet transposed convolution's padding",
    "unet",
    "up",
    "conv_padding|padding|shifted",
    "The transposed convolution pads (3, 1) for (2, 2): its map is a pixel off.",
    "padded_before",
)
fault(
    "unet skip first",
    "unet",
    "",
    "swapped_halves|reordered|rolled",
    "The skip's channels come before those from below.",
    "skip_first",
)
fault(
    "unet aligned corners",
    "unet",
    "",
    "resize_alignment|resize_method",
    "The resize puts the corners on one another (align_corners=True).",
    "corners",
)
fault(
    "unet nearest", "unet", "", "resize_method", "Nearest neighbours for the bilinear.", "nearest"
)
fault("unet no last silu", "unet", "", "activation", "No SiLU before conv_out.", "no_last_silu")
fault(
    "unet skip of the norm",
    "unet",
    "block1",
    "another_input|residual",
    "The skip is given the normed input, not the input.",
    "block1:skip_of_norm",
)
pair("unet two groups", "unet skip first")

# ---------------------------------------------------------------------------- autoencoder

fault(
    "vae flattened channels last",
    "vae",
    "",
    _ORDER,
    "The map is flattened as (H, W, C), not (C, H, W).",
    "flattened_hwc",
)
fault(
    "vae variance first",
    "vae",
    "",
    "swapped_halves|reordered",
    "The first half is taken for the variance, the second for the mean.",
    "variance_first",
)
fault(
    "vae no clamp",
    "vae",
    "",
    "clamp|partial",
    "The logarithm of the variance is not clamped; the picture is right.",
    "no_clamp",
)
fault(
    "vae shaped channels last",
    "vae",
    "",
    _ORDER,
    "The latent's map is shaped as (H, W, C), not (C, H, W).",
    "shaped_hwc",
)
fault(
    "vae colours last in the shuffle",
    "vae",
    "",
    f"{_ORDER}|pixel_shuffle",
    "The channels that become pixels are read as (4, 4, 3), not (3, 4, 4).",
    "colour_last",
)
fault(
    "vae deviation squared",
    "vae",
    "",
    "power|squared|the square",
    "The deviation is exp(logvar), not exp(logvar / 2).",
    "no_half",
)
fault(
    "vae third output doubled",
    "vae",
    "",
    "factor|doubled_term",
    "The third output, the logarithm of the variance, is doubled.",
    "doubled_logvar",
)
fault(
    "vae slope",
    "vae",
    "",
    "activation|partial",
    "LeakyReLU has a slope of 0.01 for 0.2.",
    "slope",
)
pair("vae flattened channels last", "vae third output doubled")

# ---------------------------------------------------------------------------- detector

fault(
    "detector no top-down path",
    "detector",
    "",
    "missing_term|another_input|residual|skip_connection",
    "The upper level is not added to the lower one.",
    "no_top_down",
)
fault(
    "detector bilinear",
    "detector",
    "",
    "resize_method",
    "The upper level is resized bilinearly, not by nearest neighbours.",
    "smooth",
)
fault(
    "detector padding not counted",
    "detector",
    "|avgpool",
    "pool_padding|padding|partial",
    "At the border the mean is over real pixels; PyTorch counts the padding.",
    "real_pixels",
)
fault(
    "detector anchors inside of classes",
    "detector",
    "",
    _ORDER,
    "The channels of `cls` are read as (classes, anchors).",
    "anchors_inside",
)
fault(
    "detector classes by columns",
    "detector",
    "",
    _ORDER,
    "The places of the classes are listed column by column.",
    "columns_first",
)
fault(
    "detector rows before columns",
    "detector",
    "",
    "position|reordered",
    "The centres are (y, x), not (x, y).",
    "y_first",
)
fault(
    "detector no half pixel",
    "detector",
    "",
    "offset",
    "The centres lack half a cell: all coordinates are 2 less.",
    "no_half_pixel",
)
fault(
    "detector no clamp",
    "detector",
    "",
    "clamp|partial",
    "The logarithm of a box's size is not clamped.",
    "no_clamp",
)
fault(
    "detector width and height",
    "detector",
    "",
    "missing_term|partial|another_input|box_format",
    "The second half of a box is its size, not its second corner: the first corner is not added.",
    "width_height",
)
fault(
    "detector no dilation",
    "detector",
    "conv3",
    "dilation|conv_dilation",
    "A dilation of 1 for 2.",
    edit=put("conv3", kernel_dilation=1, padding=1),
)
pair("detector bilinear", "detector no half pixel")

# ---------------------------------------------------------------------------- queries

# A mask is made by the model and first used inside of the attention: either place is true.
fault(
    "detr mask inverted",
    "detr",
    "|cross_attn",
    _MASK,
    "The padding alone is attended to.",
    "mask_inverted",
)
fault("detr no mask", "detr", "|cross_attn", _MASK, "The padding is attended to.", "no_mask")
fault(
    "detr another mask",
    "detr",
    "|cross_attn",
    _MASK,
    "The last token is masked, not the padding.",
    "mask_of_last",
)
fault(
    "detr keys without position",
    "detr",
    "",
    "missing_term|position|another_input",
    "The keys have no position.",
    "keys_unplaced",
)
fault(
    "detr values with position",
    "detr",
    "",
    "extra_term|position|another_input",
    "The values have the position of the keys.",
    "values_placed",
)
fault(
    "detr queries without position",
    "detr",
    "",
    "missing_term|position|another_input|skip_connection",
    "The queries of the cross attention have no position.",
    "queries_unplaced",
)
fault(
    "detr no residual",
    "detr",
    "",
    "missing_term|residual|skip_connection",
    "No residual around the MLP.",
    "no_residual",
)
fault("detr no sigmoid", "detr", "", "activation", "The boxes have no sigmoid.", "no_sigmoid")
fault(
    "detr rows before columns",
    "detr",
    "",
    _ORDER,
    "Boxes are (y, x, y, x), not (x, y, x, y).",
    "y_first",
)
fault(
    "detr softmax over queries",
    "detr",
    "self_attn",
    "softmax_axis|softmax|reduction_axis",
    "The softmax of the queries' attention is over queries.",
    "self_attn:over_queries",
)
fault(
    "detr scale of the whole width",
    "detr",
    "cross_attn",
    "attention_scale|factor",
    "The scale is that of all heads together.",
    "cross_attn:whole_width",
)
pair("detr keys without position", "detr rows before columns")

# ---------------------------------------------------------------------------- Perceiver

fault(
    "perceiver context not normed",
    "perceiver",
    "|norm_context",
    "missing_norm|missing_module|another_input|layer_norm|unchanged_input",
    "The context is not normed.",
    "context_unnormed",
)
fault(
    "perceiver no residual",
    "perceiver",
    "",
    "missing_term|residual|skip_connection",
    "The latents are not added to what they read.",
    "no_residual",
)
fault(
    "perceiver gate first",
    "perceiver",
    "",
    "gate_order|gate|swapped_halves",
    "The first half of `wide` is the gate, not the second.",
    "gate_first",
)
fault(
    "perceiver interleaved gate",
    "perceiver",
    "",
    "gate_order|gate|reordered",
    "Value and gate are every other channel, not halves.",
    "interleaved_gate",
)
fault(
    "perceiver summed",
    "perceiver",
    "",
    "factor|pooling",
    "The latents are summed, not averaged: six times too much.",
    "sum",
)
fault(
    "perceiver softmax over heads",
    "perceiver",
    "attn",
    "softmax_axis|softmax|reduction_axis",
    "The softmax is over heads.",
    "attn:over_heads",
)
fault(
    "perceiver heads inside of channels",
    "perceiver",
    "attn",
    f"head_layout|{_ORDER}",
    "The heads are put together as (d, heads), not (heads, d).",
    "attn:heads_inside",
)
fault(
    "perceiver no scale",
    "perceiver",
    "attn",
    "attention_scale|factor",
    "The scores are not scaled.",
    "attn:unscaled",
)
pair("perceiver gate first", "perceiver summed")
