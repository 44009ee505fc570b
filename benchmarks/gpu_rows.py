"""The rows on a GPU: the CPU's, at sizes that fill the chip where what is measured is not the cost of starting a step.

They stand in the order of what must be known first, since a run may have to end after some minutes.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.rows import ROWS, TRANSCENDENTALS, Row, mlp

ELEMENTS = 10**8
STARTING = 0.7  # the bar where most of a step is starting it
COPYING = 0.85  # of the speed of a copy

_WIDE = mlp("mlp_wide", 8192, (1024, 1024, 1024, 10), "relu", bar=1.0)

GPU_ROWS = {
    row.name: row
    for row in (
        replace(ROWS["overhead"], bar=STARTING, bar_us=None),
        replace(ROWS["mlp_tiny"], bar=STARTING, dynamic_bar=None),
        _WIDE,
        Row(
            "elementwise",
            "elementwise",
            "exp(x) + sqrt(x) over 1e8 elements",
            {"elements": ELEMENTS, "functions": ("exp", "sqrt")},
            1.0,
            copy_bar=COPYING,
        ),
        Row(
            "softmax_ce",
            "softmax_ce",
            "cross-entropy of 8192 x 32768 logits, loss and gradient",
            {"batch": 8192, "classes": 32768},
            1.0,
            copy_bar=COPYING,
        ),
        Row(
            "adam_100m",
            "adam",
            "Adam over 16 matrices of 2500 x 2500, 1e8 parameters",
            {"matrices": 16, "width": 2500},
            1.0,
            copy_bar=COPYING,
        ),
        # Fewer ops than on the CPU: the peers would be compiling for minutes.
        Row(
            "deep_chain",
            "chain",
            "loss and gradient through 600 ops, tanh(x * a + b) in turn, on 64 elements",
            {"rounds": 200, "elements": 64},
            STARTING,
        ),
        replace(ROWS["mlp_mnist"], bar=1.0),
        Row(
            "layernorm_mlp",
            "layernorm_mlp",
            "4096 x 4 blocks of x + W2 gelu(W1 layernorm(x)), 1024-4096-1024",
            {"batch": 4096, "blocks": 4, "width": 1024, "hidden": 4096},
            1.0,
        ),
        Row(
            "embedding_bag",
            "embedding_bag",
            "mean of 32 of 100,000 embeddings of 128, linear; 8192 bags",
            {"batch": 8192, "tokens": 32, "vocabulary": 100_000, "width": 128, "classes": 10},
            1.0,
        ),
        replace(_WIDE, name="mlp_wide_tf32", what=f"{_WIDE.what}, products in TF32", precision="tf32"),
        Row(
            "transcendentals",
            "elementwise",
            "sum of 18 transcendentals over 1e8 elements",
            {"elements": ELEMENTS, "functions": TRANSCENDENTALS},
            1.0,
        ),
    )
}


def rows_on(device: str) -> dict[str, Row]:
    """The rows of a device, "cpu" or "cuda", by name."""
    return {"cpu": ROWS, "cuda": GPU_ROWS}[device]
