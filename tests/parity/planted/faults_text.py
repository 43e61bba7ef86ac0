"""Planted faults of models of sequences."""

import numpy as np

from tests.parity.planted.base import fault, pair
from tests.parity.planted.edits import change, exchange, put, rounded

_GELU = "gelu|activation"
_MASK = "mask|attention_mask"
_ORDER = "permuted_axes|reordered"
_SKIPPED_NORM = "missing_norm|missing_module|another_input|layer_norm|unchanged_input"
_GATE = "gate_order|gate|swapped_halves"
_NO_POSITION = "missing_term|position"

# ---------------------------------------------------------------------------- GPT

fault(
    "gpt positions from one",
    "gpt",
    "|wpe",
    "position|shifted|offset",
    "Positions are counted from 1.",
    "from_one",
)
fault("gpt no mask", "gpt", "h.0.attn", _MASK, "No causal mask.", "no_mask")
fault(
    "gpt sees the next token",
    "gpt",
    "h.1.attn",
    _MASK,
    "The causal mask is off by one: a token sees the next.",
    "h.1.attn:sees_next",
)
fault("gpt sees the future", "gpt", "h.0.attn", _MASK, "The mask is transposed.", "anti_causal")
fault(
    "gpt mask of zeros",
    "gpt",
    "h.0.attn",
    _MASK,
    "Masked scores are 0, not -inf.",
    "h.0.attn:multiplied_mask",
)
fault(
    "gpt scaled embedding",
    "gpt",
    "|wte",
    "factor|embedding_scale|extra_term",
    "The tokens are multiplied by the root of the width.",
    "scaled_embedding",
)
fault("gpt no position", "gpt", "", _NO_POSITION, "No position is added.", "no_position")
fault("gpt erf gelu", "gpt", "h.1", _GELU, "The exact GELU for the tanh form.", "h.1:erf")
fault(
    "gpt no second norm",
    "gpt",
    "h.0|h.0.ln_2",
    _SKIPPED_NORM,
    "No norm before the MLP.",
    "h.0:no_ln_2",
)
fault("gpt no last norm", "gpt", "|ln_f", _SKIPPED_NORM, "No norm before the head.", "no_ln_f")
fault("gpt scaled logits", "gpt", "", "factor", "The logits are a quarter.", "scaled_logits")
fault(
    "gpt scale by d",
    "gpt",
    "h.0.attn",
    "attention_scale|factor",
    "Scores are divided by d, not by its square root.",
    "h.0.attn:scale_d",
)
fault(
    "gpt heads inside of channels",
    "gpt",
    "h.0.attn",
    f"head_layout|{_ORDER}",
    "Channels are split as (d, heads), not (heads, d).",
    "h.0.attn:dim_first",
)
fault(
    "gpt keys before queries",
    "gpt",
    "h.1.attn",
    "qkv_order|reordered|another_input",
    "The first third of c_attn is taken for the keys, the second for the queries.",
    "h.1.attn:key_first",
)
fault(
    "gpt scores of one head",
    "gpt",
    "h.0.attn",
    "attention_scale|factor|channel_factor",
    "The scores of the second head are half as large again.",
    "h.0.attn:one_head_scaled",
)
fault(
    "gpt residual of the norm",
    "gpt",
    "h.0",
    "residual|another_input|skip_connection",
    "The normed input is added to the attention, not the input.",
    "h.0:residual_of_norm",
)
pair("gpt scaled embedding", "gpt scaled logits")
pair("gpt positions from one", "gpt erf gelu")

# ---------------------------------------------------------------------------- CLIP

fault("clip gelu", "clip", "blocks.0", _GELU, "GELU for quick GELU.", "blocks.0:erf")
fault(
    "clip positions rolled",
    "clip",
    "",
    "rolled|position|reordered",
    "The positions are rolled by one.",
    "rolled_position",
)
fault(
    "clip token before the last",
    "clip",
    "",
    "shifted|pooling|another_input|another_token",
    "The answer is taken from the token before the end of the text.",
    "token_before",
)
fault(
    "clip end of the row",
    "clip",
    "",
    "pooling|another_input|another_token",
    "The answer is taken from the row's last token, not from the end of the text.",
    "last_token",
)
fault(
    "clip projection transposed",
    "clip",
    "",
    "transposed_kernel|permuted_axes",
    "The text projection is transposed.",
    "projection_T",
)
fault("clip no exp", "clip", "", "factor|activation", "logit_scale for its exponential.", "no_exp")
fault(
    "clip length over the batch",
    "clip",
    "",
    "norm_axis|reduction_axis",
    "The length is taken over the batch, not over channels.",
    "norm_of_batch",
)

# ---------------------------------------------------------------------------- T5

fault(
    "t5 scaled scores",
    "t5",
    "block.0.attn",
    "attention_scale|factor",
    "T5 does not scale its scores.",
    "block.0.attn:scaled",
)
fault(
    "t5 query minus key",
    "t5",
    "|relative",
    "position|permuted_axes|reordered|sign",
    "Distances are queries minus keys: past and future are exchanged.",
    "query_minus_key",
)
fault(
    "t5 bias of the other head",
    "t5",
    "",
    "flipped|reordered|swapped_halves|rolled|head_layout",
    "The relative bias is given to the heads in the reverse order.",
    "heads_flipped",
)
fault(
    "t5 no bias",
    "t5",
    "block.1.attn",
    f"{_NO_POSITION}|missing_bias",
    "The second layer does not add the relative bias.",
    "block.1.attn:no_bias",
)
fault("t5 silu", "t5", "block.0", "activation|gelu", "SiLU for GELU in the gate.", "block.0:silu")
fault(
    "t5 gate and up",
    "t5",
    "block.1",
    _GATE,
    "GELU is taken of wi_1, not wi_0.",
    "block.1:gate_and_up",
)
fault("t5 unscaled head", "t5", "", "factor", "The tied head lacks the scale 1/4.", "unscaled")
fault(
    "t5 norm epsilon",
    "t5",
    "block.1.norm2",
    "rms_norm_eps",
    "Epsilon 1e-5 for 1e-6.",
    edit=put("block.1.norm2", epsilon=1e-5),
)
pair("t5 scaled scores", "t5 unscaled head")

# ---------------------------------------------------------------------------- Llama

_FIRST, _SECOND = "layers.0.self_attn", "layers.1.self_attn"
fault(
    "llama norm epsilon",
    "llama",
    "layers.0.input_layernorm",
    "rms_norm_eps",
    "Epsilon 1e-5 for 1e-6.",
    "layers.0.input_layernorm:eps_1e-5",
)
fault(
    "llama one plus scale",
    "llama",
    "layers.1.post_attention_layernorm",
    "rms_norm|channel_factor|extra_term",
    "The scale is 1 + weight.",
    "layers.1.post_attention_layernorm:one_plus",
)
fault(
    "llama centred norm",
    "llama",
    "norm",
    "rms_norm|layer_norm",
    "The mean is taken away: a LayerNorm without bias for an RMSNorm.",
    "norm:centred",
)
fault(
    "llama epsilon outside of the root",
    "llama",
    "layers.0.post_attention_layernorm",
    "rms_norm_eps|rms_norm",
    "Epsilon is added to the root, not under it.",
    "layers.0.post_attention_layernorm:eps_outside",
)
fault("llama rope base", "llama", _FIRST, "rope_base|rope", "Base 5e5 for 1e4.", "base_5e5")
fault(
    "llama rope interleaved",
    "llama",
    _FIRST,
    "rope_layout|rope",
    "Pairs of channels are neighbours, not of two halves.",
    "interleaved",
)
fault(
    "llama rope backwards",
    "llama",
    _SECOND,
    "rope|rope_sign|sign",
    "Rotates by the negative angle.",
    f"{_SECOND}:backwards",
)
fault(
    "llama rope of queries from one",
    "llama",
    _FIRST,
    "rope_offset|rope",
    "The positions of queries are counted from 1, of keys from 0.",
    f"{_FIRST}:query_from_one",
)
fault(
    "llama rope of keys from one",
    "llama",
    "layers.1.self_attn",
    "position",
    "The positions of keys are counted from 1, of queries from 0.",
    "layers.1.self_attn:key_from_one",
)
fault("llama keys not rotated", "llama", _FIRST, "rope", "Keys are not rotated.", "key_unrotated")
fault(
    "llama heads tiled",
    "llama",
    _FIRST,
    f"head_layout|{_ORDER}",
    "Keys are tiled over the heads (0 1 0 1), not repeated (0 0 1 1).",
    f"{_FIRST}:tiled",
)
fault(
    "llama silu of up",
    "llama",
    "layers.1.mlp",
    _GATE,
    "SiLU is taken of up_proj, not of gate_proj.",
    "layers.1.mlp:silu_of_up",
)
fault(
    "llama silu of up in bfloat16",
    "llama",
    "layers.1.mlp",
    _GATE,
    "SiLU is taken of up_proj, not of gate_proj.",
    "layers.1.mlp:silu_of_up",
    settings={"precisions": ("bfloat16",)},
)
fault("llama no up", "llama", "layers.0.mlp", "gate", "up_proj's factor is missing.", "no_up")
fault("llama gelu", "llama", "layers.0.mlp", "activation|gelu", "GELU for SiLU.", "gelu")
fault(
    "llama norm of the input",
    "llama",
    "layers.0",
    "another_input|residual|missing_term|skip_connection",
    "The second norm is given the layer's input, without the attention.",
    "layers.0:norm_of_input",
)
fault(
    "llama transposed kernel",
    "llama",
    "layers.0.self_attn.o_proj",
    "transposed_kernel|permuted_axes",
    "The kernel of o_proj is transposed.",
    arrays=change("layers.0.self_attn.o_proj.weight", np.transpose),
)
fault(
    "llama gate and up exchanged",
    "llama",
    "layers.1.mlp.gate_proj|layers.1.mlp.up_proj",
    "exchanged_arrays",
    "The arrays of gate_proj and up_proj are exchanged.",
    arrays=exchange("layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"),
)
fault(
    "llama rounded head",
    "llama",
    "lm_head",
    "rounded",
    "The head's array went through bfloat16.",
    arrays=change("lm_head.weight", rounded),
)
pair("llama norm epsilon", "llama rope interleaved")
pair("llama heads tiled", "llama silu of up")

# ---------------------------------------------------------------------------- GPT-NeoX

fault(
    "neox three before heads",
    "neox",
    "layers.0.attention",
    f"qkv_order|head_layout|{_ORDER}",
    "Channels are read as (3, heads, d), not (heads, 3, d).",
    "three_first",
)
fault(
    "neox rope by halves",
    "neox",
    "layers.0.attention",
    "rope_layout|rope",
    "Pairs of channels are of two halves, not neighbours.",
    "halves",
)
fault(
    "neox rope of all channels",
    "neox",
    "layers.1.attention",
    "rope|rope_channels|rope_size",
    "All eight channels are rotated, not the first four.",
    "layers.1.attention:whole",
)
fault(
    "neox rope base",
    "neox",
    "layers.0.attention",
    "rope_base|rope",
    "Base 1e3 for 1e4.",
    "base_1e3",
)
fault(
    "neox in sequence",
    "neox",
    "layers.0",
    "residual|another_input|extra_term|skip_connection",
    "The MLP reads the sum with the attention, not the layer's input.",
    "layers.0:in_sequence",
)
fault("neox tanh gelu", "neox", "layers.1", _GELU, "The tanh form of GELU.", "layers.1:tanh")
fault(
    "neox scaled head",
    "neox",
    "embed_out",
    "scaled_array|factor",
    "The head's array is half.",
    arrays=change("embed_out.weight", lambda a: a / 2),
)
fault(
    "neox bias lost",
    "neox",
    "layers.0.attention.dense",
    "missing_bias|missing_term|channel_offset",
    "The bias of `dense` is zero.",
    arrays=change("layers.0.attention.dense.bias", np.zeros_like),
)
pair("neox rope by halves", "neox tanh gelu")
