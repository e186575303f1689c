"""Anneal an L1 penalty while a model trains: warm it up, set what is small to zero, then let go of it.

The same network (64 pixels -> 64 ReLU units -> 10 digits) learns scikit-learn's handwritten digits in three ways, from
the same initial weights and in the same order of batches. Only the ``kernel_regularizer`` of the hidden layer differs:

* ``none``: no penalty.
* ``constant``: ``L1(0.01)``, from the first step to the last.
* ``annealed``: ``L1(strength)`` with ``strength = tf.Variable(0.0, trainable=False)``. A ``LambdaCallback`` assigns it
  at the beginning of each epoch: from 0 in a straight line to the same 0.01, which stays until the weights have
  settled, and 0 after that. The model is compiled once; each change takes effect at the next step.

After ``--epochs`` epochs every hidden weight below ``--threshold`` is set to exactly zero, and stays so for some more
epochs of fine-tuning. L1 pulls at all weights alike: it makes most of them zero, and smaller what it leaves. In
fine-tuning the annealed model gets that back, for its penalty is 0 then. The script

* prints a table: test accuracy before and after thresholding and after fine-tuning, and the share of exact zeros,
* draws the factor, the share of small weights and the accuracy over the epochs (``--plot``).

All numbers are means of ``--runs`` runs, each with its own split and initial weights: of 450 test images, one is 0.2 %.

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``)::

    python examples/anneal_l1.py
    python examples/anneal_l1.py --l1 0.003 --epochs 100 --warmup 50 --plot anneal.png
"""

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported

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

from tfk_regularizers import L1  # before tf_keras: from here on its "l1", too, is the class of this package

# isort: split
import numpy as np
import tensorflow as tf
import tf_keras

MODELS = ("none", "constant", "annealed")
COLORS = {"none": "#8d99ae", "constant": "#e07a1f", "annealed": "#2a6f97"}
BATCH = 32


def load_data(seed: int):
    """Return x_train, x_test, y_train, y_test: a quarter is held out, pixels run from 0 to 1."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    return train_test_split(images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)


def build(regularizer, steps: int) -> tf_keras.Model:
    """Return the compiled classifier; the learning rate falls to a tenth, and stays there for the fine-tuning."""
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(64, "relu", kernel_regularizer=regularizer, input_shape=(64,), name="hidden"),
            tf_keras.layers.Dense(10, "softmax", name="digit"),
        ]
    )
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(5e-3, steps, alpha=0.1))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def planned_factor(name: str, epoch: int, arguments: argparse.Namespace) -> float:
    """Return the factor of a model's L1 in an epoch."""
    if name == "none" or (name == "annealed" and epoch >= arguments.epochs):
        return 0.0
    return arguments.l1 * (min(1.0, epoch / arguments.warmup) if name == "annealed" and arguments.warmup else 1.0)


def train(name: str, seed: int, arguments: argparse.Namespace, advance) -> dict[str, list | float]:
    """Train, threshold and fine-tune one model; return what was measured, epoch by epoch and at the three moments."""
    x_train, x_test, y_train, y_test = load_data(seed)
    strength = tf.Variable(0.0, trainable=False)  # read at every step
    regularizer = {"none": None, "constant": L1(arguments.l1), "annealed": L1(strength)}[name]
    tf_keras.utils.set_random_seed(seed)
    model = build(regularizer, steps=arguments.epochs * math.ceil(len(x_train) / BATCH))
    kernel = model.get_layer("hidden").kernel
    seen: dict[str, list | float] = {"factor": [], "small": [], "accuracy": []}

    def begin(epoch, logs=None):
        strength.assign(planned_factor(name, epoch, arguments))

    def end(epoch, logs):
        seen["factor"].append(planned_factor(name, epoch, arguments))
        seen["small"].append(share(np.abs(kernel.numpy()) < arguments.threshold))
        seen["accuracy"].append(logs["val_accuracy"])
        advance()

    def fit(first, last, *callbacks):
        callbacks = [tf_keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end), *callbacks]
        model.fit(x_train, y_train, BATCH, last, 0, callbacks, validation_data=(x_test, y_test), initial_epoch=first)
        return model.evaluate(x_test, y_test, verbose=0)[1]

    seen["trained"] = fit(0, arguments.epochs)
    kept = np.abs(kernel.numpy()) >= arguments.threshold
    kernel.assign(kernel * kept)
    seen["thresholded"] = model.evaluate(x_test, y_test, verbose=0)[1]
    # A step of Adam moves zeros as well: they are set back after each.
    keep = tf_keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: kernel.assign(kernel * kept))
    seen["tuned"] = fit(arguments.epochs, arguments.epochs + arguments.finetune, keep)
    seen["zeros"] = share(kernel.numpy() == 0)
    seen["left"] = float(np.abs(kernel.numpy()[kept]).mean()) if kept.any() else 0.0
    return seen


def train_all(arguments: argparse.Namespace) -> dict[str, dict]:
    """Train the three models of each run behind a progress bar; return the means over the runs."""
    columns = TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    measured = {}
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for name in MODELS:
            task = progress.add_task(f"training {name}", total=len(seeds) * (arguments.epochs + arguments.finetune))
            runs = [train(name, seed, arguments, lambda task=task: progress.advance(task)) for seed in seeds]
            measured[name] = {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}
    return measured


def share(condition: np.ndarray) -> float:
    """Return the share of True."""
    return float(np.mean(condition))


def show_table(measured: dict[str, dict], arguments: argparse.Namespace) -> None:
    """Print one line for each model."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # piped into a file, the table keeps its shape
    style = {"box": box.SIMPLE_HEAD, "show_edge": False, "collapse_padding": True, "pad_edge": False}
    caption = f"means of {arguments.runs} runs; zeros: what was below {arguments.threshold:g} after training"
    title = "Test accuracy, and what is left of 64 x 64 hidden weights"
    table = Table(title=title, title_style="bold", caption=caption, **style)
    table.add_column("L1\nfactor")
    accuracies = "accuracy\ntrained", "accuracy\nthresholded", "accuracy\nfine-tuned"
    for heading in (*accuracies, "exact\nzeros", "weights\nleft", "their mean\n|weight|"):
        table.add_column(heading, justify="right")
    for name, values in measured.items():
        accuracies = [f"{values[moment]:.1%}" for moment in ("trained", "thresholded", "tuned")]
        left = round((1 - values["zeros"]) * 64 * 64)
        table.add_row(name, *accuracies, f"{values['zeros']:.1%}", f"{left}", f"{values['left']:.3f}")
    console.print(table)


def draw(measured: dict[str, dict], arguments: argparse.Namespace) -> None:
    """Write the picture: the factor, the share of small weights and the accuracy over the epochs."""
    plt.switch_backend("Agg")  # writes files, needs no display
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.06)
    titles = "factor of the L1 penalty", f"hidden weights below {arguments.threshold:g}", "test accuracy"
    for axis, key, title in zip(axes, ("factor", "small", "accuracy"), titles, strict=True):
        scale = 1 if key == "factor" else 100
        for name, values in measured.items():
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
    # The first epochs are far below; what matters is how the three compare after them.
    settled = np.concatenate([values["accuracy"][len(epochs) // 10 :] for values in measured.values()])
    axes[2].set_ylim(100 * settled.min() - 0.5, min(100.0, 100 * settled.max() + 0.5))
    axes[0].text(arguments.epochs - 0.5, 0.5, "small weights\nset to zero", ha="right", va="center", color="0.3",
                 transform=axes[0].get_xaxis_transform())  # fmt: skip
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.plot, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    picture = Path(__file__).resolve().parent / "images" / "anneal_l1.png"
    parser = argparse.ArgumentParser(description="Warm up L1, set small weights to zero, fine-tune the rest.")
    parser.add_argument("--l1", type=float, default=0.01, help="full strength of the penalty (default: 0.01)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs until small weights are zeroed (default: 30)")
    parser.add_argument("--warmup", type=int, default=15, help="epochs from 0 to full strength (default: 15)")
    parser.add_argument("--finetune", type=int, default=10, help="epochs after that (default: 10)")
    parser.add_argument("--threshold", type=float, default=0.01, help="size of a weight that stays (default: 0.01)")
    parser.add_argument(
        "--plot", type=Path, default=picture, help="PNG to write (default: images/anneal_l1.png beside this script)"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs to take the mean of (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run: split, weights, batches (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Train, threshold, fine-tune, and show."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # each model is traced: the warning about retracing is not for us
    measured = train_all(arguments)
    show_table(measured, arguments)
    draw(measured, arguments)
    print(f"Picture: {arguments.plot}")


if __name__ == "__main__":
    main()
