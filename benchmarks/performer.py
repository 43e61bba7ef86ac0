"""Cost of T2T's performer beside its softmax form, against the number of tokens.

    python -m benchmarks.performer [--picture docs/images/performer_cost.png]

Both are the first layer of the token module (147 features to 64), float32, a batch of one image,
forward and backward. 784, 3,136 and 12,544 tokens are images of 112, 224 and 448 pixels. Memory is
what XLA plans for the computation's temporaries.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measure import medians
from vit_jax.layers.initializers import trunc_normal
from vit_jax.layers.performer import TokenPerformer
from vit_jax.layers.token_transformer import TokenTransformer

TOKENS = (784, 3136, 12544)
_LAYERS = {"performer": TokenPerformer, "softmax": TokenTransformer}


@dataclasses.dataclass(frozen=True)
class Cost:
    """One row of the table: seconds and bytes of a forward and backward pass."""

    layer: str
    tokens: int
    seconds: float
    temporary_bytes: int


def measure(tokens: int, rounds: int) -> list[Cost]:
    """The cost of both layers at so many tokens.

    Each by itself: what softmax allocates between its calls slows the performer's page by page.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, tokens, 147)), jnp.float32)
    costs = []
    for name, kind in _LAYERS.items():
        layer = kind(
            147,
            64,
            drop_rate=0.0,
            kernel_init=trunc_normal(0.02),
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
        graph, params, rest = nnx.split(layer, nnx.Param, ...)

        def loss(params, x, graph=graph, rest=rest):
            return jnp.square(nnx.merge(graph, params, rest)(x)).mean()

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, x).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None, "this backend does not report its memory"
        seconds = medians({name: lambda c=compiled, p=params: c(p, x)}, rounds)[name]
        costs.append(Cost(name, tokens, seconds, analysis.temp_size_in_bytes))
    return costs


def draw(costs: list[Cost], path: str) -> None:
    """Time and memory against tokens, on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, label, value in zip(
        figure.subplots(1, 2),
        ("milliseconds, forward and backward", "temporary memory, MiB"),
        (lambda cost: 1e3 * cost.seconds, lambda cost: cost.temporary_bytes / 2**20),
        strict=True,
    ):
        for name, colour, marker in (("performer", "#0072B2", "o"), ("softmax", "#D55E00", "s")):
            rows = [cost for cost in costs if cost.layer == name]
            values = [value(cost) for cost in rows]
            axes.loglog(TOKENS, values, color=colour, marker=marker, label=name)
            power = 1 if name == "performer" else 2
            guide = [values[0] * (tokens / TOKENS[0]) ** power for tokens in TOKENS]
            axes.loglog(
                TOKENS, guide, color=colour, linestyle=":", label=f"proportional to tokens^{power}"
            )
        axes.set_xticks(TOKENS, [f"{tokens:,}" for tokens in TOKENS])
        axes.minorticks_off()
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of the performer beside softmax")
    parser.add_argument("--picture", help="where the picture goes; none is drawn without it")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    costs = [cost for tokens in TOKENS for cost in measure(tokens, arguments.rounds)]
    print("layer      tokens   time (ms)   temporaries (MiB)")
    for cost in sorted(costs, key=lambda cost: cost.layer):
        print(
            f"{cost.layer:9} {cost.tokens:7,} {1e3 * cost.seconds:11.1f} "
            f"{cost.temporary_bytes / 2**20:19.1f}"
        )
    if arguments.picture:
        draw(costs, arguments.picture)


if __name__ == "__main__":
    main()
