"""Anneal an L1 penalty during training, keep only the largest weights, and compare with a constant factor.

The same network (64 pixels -> 64 ReLU units -> 10 digits) learns scikit-learn's handwritten digits in four ways, with
the same initial weights and the same order of batches. Only the factor of ``L1`` on the hidden kernel differs:

* ``none``: The factor is 0.
* ``constant``: The factor is ``--l1`` from the first step to the last.
* ``released``: The factor is ``--l1`` until the model is pruned, then 0.
* ``annealed``: The factor rises linearly to ``--l1``, stays there while the weights settle, and is 0 after pruning.

A ``RegularizationScheduler`` sets the factor when an epoch begins; the model is compiled once, with a plain ``L1``.

After ``--epochs`` epochs, **every model** is pruned to the ``--left`` largest of its 4096 hidden weights, because
accuracies with different numbers of weights cannot be compared. The other weights are set to exactly zero, and stay
zero during some more epochs of fine-tuning. The script

* prints a table: test accuracy before and after pruning and after fine-tuning, and the size of the weights,
* prints for each run how annealing compares with the constant factor, and with the one that is released,
* draws the factor, the share of small weights and the accuracy over the epochs (``--plot``).

All numbers are means of ``--runs`` runs, each with its own split and initial weights; ± is their standard deviation.
One of the 450 test images is 0.2 %.

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``)::

    python examples/anneal_l1.py
    python examples/anneal_l1.py --l1 0.01 --left 75 --plot anneal.png
"""

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads this when it is imported

try:
    import matplotlib.pyplot as plt
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    sys.exit(f'This example needs {error.name}. Install what the examples use: pip install -e ".[examples]"')

from tfk_regularizers import L1, RegularizationScheduler  # before tf_keras

# isort: split
import numpy as np
import tensorflow as tf
import tf_keras

COLORS = {"none": "#8d99ae", "constant": "#e07a1f", "released": "#7a9e3f", "annealed": "#2a6f97"}
BATCH = 32
SMALL = 0.01  # the picture counts weights below this as small


def load_data(seed: int):
    """Return x_train, x_test, y_train, y_test, with a quarter held out and pixels from 0 to 1."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    return train_test_split(images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)


def build(mask: tf.Variable, steps: int, epochs: int) -> tf_keras.Model:
    """Return the compiled classifier. The learning rate falls to a tenth, and stays there during fine-tuning."""
    # Adam also moves weights that are zero: the constraint resets them after each step.
    hidden = tf_keras.layers.Dense(
        64, "relu", kernel_regularizer=L1(0.0), kernel_constraint=lambda kernel: kernel * mask, name="hidden"
    )
    model = tf_keras.Sequential([tf_keras.Input((64,)), hidden, tf_keras.layers.Dense(10, "softmax", name="digit")])
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(5e-3, steps * epochs, alpha=0.1))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=steps)
    return model


def planned_factor(name: str, epoch: int, arguments: argparse.Namespace) -> float:
    """Return the factor of a model's L1 in an epoch."""
    if name == "none" or (name != "constant" and epoch >= arguments.epochs):
        return 0.0
    return arguments.l1 * (min(1.0, epoch / arguments.warmup) if name == "annealed" and arguments.warmup else 1.0)


def train(name: str, seed: int, arguments: argparse.Namespace, advance) -> dict[str, list | float]:
    """Train, prune and fine-tune one model; return its measurements in each epoch and at the three stages."""
    x_train, x_test, y_train, y_test = load_data(seed)
    tf_keras.utils.set_random_seed(seed)
    mask = tf.Variable(tf.ones((64, 64)), trainable=False)
    model = build(mask, math.ceil(len(x_train) / BATCH), arguments.epochs)
    kernel = model.get_layer("hidden").kernel
    seen: dict[str, list | float] = {"factor": [], "small": [], "accuracy": []}

    def accuracy():
        return float(np.mean(np.argmax(model(x_test).numpy(), axis=1) == y_test))

    def end(epoch, logs):
        seen["factor"].append(logs["l1"])
        seen["small"].append(float(np.mean(np.abs(kernel.numpy()) < SMALL)))
        seen["accuracy"].append(accuracy())
        advance()

    callbacks = [
        RegularizationScheduler(lambda epoch: planned_factor(name, epoch, arguments)),
        tf_keras.callbacks.LambdaCallback(on_epoch_end=end),
    ]

    def fit(first, last):
        model.fit(x_train, y_train, BATCH, last, verbose=0, callbacks=callbacks, initial_epoch=first)
        return accuracy()

    seen["trained"] = fit(0, arguments.epochs)
    sizes = np.abs(kernel.numpy())
    mask.assign(sizes >= np.sort(sizes, axis=None)[-arguments.left])
    kernel.assign(kernel * mask)
    seen["cut"] = accuracy()
    seen["tuned"] = fit(arguments.epochs, arguments.epochs + arguments.finetune)
    seen["left"] = np.count_nonzero(kernel.numpy())
    seen["size"] = float(np.abs(kernel.numpy()[kernel.numpy() != 0]).mean())
    return seen


def train_all(arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """Train the four models of each run with a progress bar."""
    columns = TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    measured = {}
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for name in COLORS:
            task = progress.add_task(f"training {name}", total=len(seeds) * (arguments.epochs + arguments.finetune))
            measured[name] = [train(name, seed, arguments, lambda task=task: progress.advance(task)) for seed in seeds]
    return measured


def spread(values, form: str) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    deviation = f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + deviation


def show_table(measured: dict[str, list[dict]], arguments: argparse.Namespace) -> None:
    """Print one line for each model, and how annealing compares with the others."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # keep the shape of the table when piped into a file
    style = {"box": box.SIMPLE_HEAD, "show_edge": False, "collapse_padding": True, "pad_edge": False}
    caption = f"L1 factor {arguments.l1:g}; mean ± standard deviation of {arguments.runs} runs"
    title = f"Test accuracy (%) with {arguments.left} of 64 x 64 hidden weights"
    table = Table(title=title, title_style="bold", caption=caption, **style)
    table.add_column("L1\nfactor")
    for heading in "before\npruning", "after\npruning", "fine-\ntuned", "weights\nkept", "mean\n|weight|":
        table.add_column(heading, justify="right")
    for name, runs in measured.items():
        accuracies = (spread([100 * run[moment] for run in runs], "{:.1f}") for moment in ("trained", "cut", "tuned"))
        left = f"{np.mean([run['left'] for run in runs]):.0f}"
        table.add_row(name, *accuracies, left, f"{np.mean([run['size'] for run in runs]):.3f}")
    console.print(table)
    for other in "constant", "released":
        gains = [100 * (a["tuned"] - b["tuned"]) for a, b in zip(measured["annealed"], measured[other], strict=True)]
        listed = ", ".join(f"{gain:+.1f}" for gain in gains)
        print(f"annealed - {other}, fine-tuned, in each run: {listed} points; mean {spread(gains, '{:.1f}')}")


def draw(measured: dict[str, list[dict]], arguments: argparse.Namespace) -> None:
    """Draw the factor, the share of small weights and the accuracy over the epochs."""
    keys = "factor", "small", "accuracy"
    means = {
        name: {key: np.mean([run[key] for run in runs], axis=0) for key in keys} for name, runs in measured.items()
    }
    plt.switch_backend("Agg")  # write files without a display
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.06)
    titles = "factor of the L1 penalty", f"hidden weights below {SMALL:g}", "test accuracy"
    for axis, key, title in zip(axes, keys, titles, strict=True):
        scale = 1 if key == "factor" else 100
        for name, values in means.items():
            epochs = np.arange(1, len(values[key]) + 1)
            steps = "steps-mid" if key == "factor" else "default"
            axis.plot(epochs, scale * values[key], color=COLORS[name], linewidth=2.2, label=name, drawstyle=steps)
        axis.axvline(arguments.epochs + 0.5, color="0.4", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(title, fontweight="bold", loc="left", pad=12)
        axis.set(xlabel="epoch", xlim=(0, arguments.epochs + arguments.finetune + 1))
        axis.margins(y=0.06)
        if scale == 100:
            axis.yaxis.set_major_formatter("{x:.0f}%")
    axes[1].set_ylim(-3, 103)
    # Do not show the first epochs, or the model that is pruned without a penalty: they are far below.
    settled = np.concatenate([means[name]["accuracy"][arguments.epochs // 5 :] for name in COLORS if name != "none"])
    axes[2].set_ylim(100 * settled.min() - 1, 100 * means["none"]["accuracy"].max() + 0.5)
    axes[0].text(arguments.epochs - 0.5, 0.5, f"cut to\n{arguments.left} weights", ha="right", va="center", color="0.3",
                 transform=axes[0].get_xaxis_transform())  # fmt: skip
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.plot, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    picture = Path(__file__).resolve().parent / "out" / "anneal_l1.png"
    parser = argparse.ArgumentParser(description="Anneal L1, keep the largest weights, and fine-tune them.")
    parser.add_argument("--l1", type=float, default=0.005, help="full factor of the penalty (default: 0.005)")
    parser.add_argument("--left", type=int, default=128, help="hidden weights to keep (default: 128)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs before pruning (default: 30)")
    parser.add_argument("--warmup", type=int, default=15, help="epochs from 0 to the full factor (default: 15)")
    parser.add_argument("--finetune", type=int, default=10, help="epochs after pruning (default: 10)")
    parser.add_argument(
        "--plot", type=Path, default=picture, help="PNG to write (default: out/anneal_l1.png next to this script)"
    )
    parser.add_argument("--runs", type=int, default=5, help="number of runs (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="first run's seed: split, weights, batches (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Train, prune, fine-tune, and show the results."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # each model is traced once: the warning about retracing does not apply
    measured = train_all(arguments)
    show_table(measured, arguments)
    draw(measured, arguments)
    print(f"Picture: {arguments.plot}")


if __name__ == "__main__":
    main()
