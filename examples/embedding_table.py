"""Measure what a penalty on an Embedding costs: on the whole table, or only on the rows that a step looks up.

    python examples/embedding_table.py

The table has a million rows of 64, of which a step looks up 128 x 20. Times are milliseconds per step: medians over
rounds in which the three take turns. The legacy optimizers update only the rows that have a gradient, so a step without
a penalty touches at most 2560 rows; the newer ones and Adam pass over the whole table in any case. This needs the extra
`examples`.
"""

import argparse
import statistics
import sys
import time

try:
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    sys.exit(f'{error}. This example needs the extra "examples": pip install -e ".[examples]"')

import tfk_regularizers as tfk  # before tf_keras, whose regularizers it replaces

# isort: split
import numpy as np
import tf_keras

DIMENSIONS, BATCH, LENGTH = 64, 128, 20
OPTIMIZERS = {
    "legacy.SGD": lambda: tf_keras.optimizers.legacy.SGD(0.1),
    "SGD": lambda: tf_keras.optimizers.SGD(0.1),
    "Adam": lambda: tf_keras.optimizers.Adam(1e-3),
}
PENALTIES = {
    "none": {},
    "activity_regularizer=L2(1e-4)": {"activity_regularizer": tfk.L2(1e-4)},
    "embeddings_regularizer=L2(1e-4)": {"embeddings_regularizer": tfk.L2(1e-4)},
}


def build(rows, optimizer, penalty):
    """Return a compiled model that maps the mean of the vectors of a sequence of tokens to a number."""
    layers = [
        tf_keras.layers.Embedding(rows, DIMENSIONS, input_length=LENGTH, **PENALTIES[penalty]),
        tf_keras.layers.GlobalAveragePooling1D(),
        tf_keras.layers.Dense(1),
    ]
    model = tf_keras.Sequential(layers)
    model.compile(OPTIMIZERS[optimizer](), "mse")
    return model


def milliseconds(models, x, y, rounds):
    """Return the median time of a step of each model, in rounds in which they take turns."""
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.train_on_batch(x, y)
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken[2:]) for name, taken in times.items()}  # the first steps trace


def main():
    """Measure the times and print them."""
    parser = argparse.ArgumentParser(description="Measure what a penalty on an Embedding costs.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    x = random.integers(0, arguments.rows, (BATCH, LENGTH))
    y = random.standard_normal((BATCH, 1)).astype("float32")
    table = Table(title=f"Milliseconds per step, table of {arguments.rows} x {DIMENSIONS}")
    table.add_column("penalty")
    measured = {}
    for optimizer in OPTIMIZERS:
        table.add_column(optimizer, justify="right")
        models = {penalty: build(arguments.rows, optimizer, penalty) for penalty in PENALTIES}
        measured[optimizer] = milliseconds(models, x, y, arguments.rounds)
    for penalty in PENALTIES:
        table.add_row(penalty, *(f"{measured[optimizer][penalty]:.1f}" for optimizer in OPTIMIZERS))
    Console().print(table)


if __name__ == "__main__":
    main()
