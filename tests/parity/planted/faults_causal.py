"""Planted faults of causal convolutions."""

from tests.parity.planted.base import fault
from tests.parity.planted.edits import change

_GATE = "gate_order|gate|swapped_halves"

fault(
    "causal centred",
    "causal",
    "blocks.1",
    "shifted|padding|conv_padding",
    "The convolution is padded on both sides: it sees the future.",
    "blocks.1:centred",
)
fault(
    "causal gate first",
    "causal",
    "blocks.0",
    _GATE,
    "The halves are exchanged.",
    "blocks.0:gate_first",
)
fault(
    "causal looks ahead",
    "causal",
    "blocks.1",
    "shifted|padding|conv_padding",
    "The depthwise convolution is padded after the sequence, not before it.",
    "blocks.1:looks_ahead",
)
fault(
    "causal subtracted",
    "causal",
    "blocks.0",
    "sign|skip_connection",
    "The branch is subtracted.",
    "blocks.0:subtracted",
)
fault(
    "causal wraps around",
    "causal",
    "",
    "rolled|partial|padding",
    "The token before the first is the last, not zero.",
    "wraps",
)
fault(
    "causal reversed sum",
    "causal",
    "",
    "flipped|cumsum",
    "The sums run from the end, not from the start.",
    "reversed",
)
fault(
    "causal exclusive sum",
    "causal",
    "",
    "shifted|missing_term|cumsum",
    "The sums leave the token itself out.",
    "exclusive",
)
fault(
    "causal flipped kernel",
    "causal",
    "blocks.0.conv",
    "flipped|reordered|patch_order",
    "The kernel is flipped: a convolution for a correlation.",
    arrays=change("blocks.0.conv.weight", lambda a: a[..., ::-1]),
)
