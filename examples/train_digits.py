"""Train one small classifier with each weight regularizer and look at what the penalty did to the weights.

The same network (64 pixels -> 64 ReLU units -> 10 digits) learns scikit-learn's handwritten digits five times,
from the same initial weights and in the same order of batches. Only the ``kernel_regularizer`` of the hidden layer
differs: none, ``"l1"``, ``"l2"``, ``"l1_l2"`` (all at their default factor, 0.01) and an orthogonal one. The script

* prints a table: test accuracy, test loss, penalty, and two measures of the hidden kernel,
* draws the same as a picture (``--plot``),
* saves the five models as ``.keras`` files (``--out``), loads them in a fresh process and checks that every loss and
  every penalty there is what it was here. The exit status is 1 if one is not.

The hidden kernel has shape (64, 64): row i holds the weights that leave pixel i. L1 sets most of them to zero, L2 makes
all of them small, and the orthogonal penalty turns the rows until they stand nearly at right angles. A pixel that is
blank in every image keeps its initial weights where there is no penalty; L1 and L2 take them to zero, which leaves a
pale line in the picture, for a row of zeros has a cosine of 0 with every other.

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``)::

    python examples/train_digits.py
    python examples/train_digits.py --epochs 100 --out digits_models --plot digits.png
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
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

import tfk_regularizers  # before tf_keras: from here on "l1", "l2" and "l1_l2" are the classes of this package

# isort: split
import numpy as np
import tensorflow as tf
import tf_keras

# What each model is called, and what its hidden layer gets as kernel_regularizer.
PENALTIES = {
    "none": None,
    "l1": "l1",
    "l2": "l2",
    "l1_l2": "l1_l2",
    "orthogonal": tfk_regularizers.OrthogonalRegularizer(factor=1.0, mode="rows"),
}
BATCH = 32


def load_data(seed: int):
    """Return x_train, x_test, y_train, y_test: a quarter is held out, pixels run from 0 to 1."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    return train_test_split(images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)


def build(regularizer, steps: int) -> tf_keras.Model:
    """Return the compiled classifier; the learning rate falls to zero, which lets small weights settle."""
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(64, "relu", kernel_regularizer=regularizer, input_shape=(64,), name="hidden"),
            tf_keras.layers.Dense(10, "softmax", name="digit"),
        ]
    )
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(5e-3, steps))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(data, epochs: int, seed: int) -> dict[str, tf_keras.Model]:
    """Fit one model for each penalty, behind a progress bar."""
    x_train, _, y_train, _ = data
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    models = {}
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for name, regularizer in PENALTIES.items():
            task = progress.add_task(f"training {name}", total=epochs)
            advance = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, task=task: progress.advance(task))
            tf_keras.utils.set_random_seed(seed)
            models[name] = build(regularizer, steps=epochs * math.ceil(len(x_train) / BATCH))
            models[name].fit(x_train, y_train, BATCH, epochs, verbose=0, callbacks=[advance])
    return models


def measure(model: tf_keras.Model, data) -> dict:
    """Return the model's regularizer and its test loss (data + penalty), accuracy and penalty alone."""
    _, x_test, _, y_test = data
    loss, accuracy = model.evaluate(x_test, y_test, batch_size=len(x_test), verbose=0)
    regularizer = model.get_layer("hidden").kernel_regularizer
    kind = type(regularizer)
    return {
        "regularizer": "-" if regularizer is None else f"{kind.__module__.partition('.')[0]}.{kind.__name__}",
        "loss": loss,
        "accuracy": accuracy,
        "penalty": float(sum(model.losses)),
    }


def rows_cosines(kernel: np.ndarray) -> np.ndarray:
    """Return |cosine| of every pair of rows: (n, d) -> (n, n)."""
    rows = kernel / np.sqrt(np.maximum(np.sum(kernel**2, axis=1, keepdims=True), 1e-12))
    return np.abs(rows @ rows.T)


def describe(kernel: np.ndarray) -> dict[str, float]:
    """Return the share of weights that are practically zero, and the mean |cosine| over pairs of rows."""
    pairs = np.triu_indices(len(kernel), 1)
    return {"small": float(np.mean(np.abs(kernel) < 1e-3)), "cosine": float(rows_cosines(kernel)[pairs].mean())}


def show_table(measured: dict[str, dict], kernels: dict[str, np.ndarray]) -> None:
    """Print one line for each model."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # piped into a file, the table keeps its shape
    style = {"box": box.SIMPLE_HEAD, "show_edge": False, "collapse_padding": True, "pad_edge": False}
    caption = "test loss = data loss + penalty"
    table = Table(title="Hidden kernel: 64 pixels (rows) x 64 units", title_style="bold", caption=caption, **style)
    table.add_column("penalty")
    table.add_column("class", overflow="fold")
    for heading in "test\naccuracy", "test\nloss", "penalty\nalone", "weights\n< 0.001", "row mean\n|cosine|":
        table.add_column(heading, justify="right")
    for name, values in measured.items():
        kernel = describe(kernels[name])
        numbers = f"{values['accuracy']:.1%}", f"{values['loss']:.4f}", f"{values['penalty']:.4f}"
        kind = values["regularizer"].rpartition(".")[2]
        table.add_row(name, kind, *numbers, f"{kernel['small']:.1%}", f"{kernel['cosine']:.3f}")
    console.print(table)


def draw(measured: dict[str, dict], kernels: dict[str, np.ndarray], file: Path) -> None:
    """Write the picture: above, the weights of each hidden kernel as a histogram; below, the cosines of its rows."""
    plt.switch_backend("Agg")  # writes files, needs no display
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, len(kernels), figsize=(14, 7.2), sharex="row", sharey="row", layout="constrained")
    figure.get_layout_engine().set(hspace=0.05, wspace=0.03)
    limit = max(np.abs(kernel).max() for kernel in kernels.values())
    bins = np.linspace(-limit, limit, 62)  # 61 bins: the middle one is centred at zero
    for (name, kernel), histogram, matrix in zip(kernels.items(), *axes, strict=True):
        summary = describe(kernel)
        histogram.hist(kernel.ravel(), bins, log=True, color="#2a6f97")
        histogram.set_title(name, fontsize=16, fontweight="bold", pad=42)
        above = f"accuracy {measured[name]['accuracy']:.1%}\n|w| < 0.001: {summary['small']:.1%}"
        histogram.text(0.5, 1.04, above, ha="center", linespacing=1.3, transform=histogram.transAxes)
        histogram.set(xlabel="weight w", xticks=[-1, 0, 1], yticks=[1, 10, 100, 1000])
        histogram.set_yticklabels(["1", "10", "100", "1000"])
        image = matrix.imshow(rows_cosines(kernel), cmap="GnBu", vmin=0, vmax=1)
        matrix.set_title(f"mean |cosine| {summary['cosine']:.2f}", fontsize=13)
        matrix.set(xticks=range(0, 64, 16), yticks=range(0, 64, 16), xlabel="pixel")
    axes[0, 0].set_ylabel("number of weights")
    axes[1, 0].set_ylabel("pixel (row of the kernel)")
    figure.colorbar(image, ax=axes[1, :], label="|cosine| of two rows", pad=0.01)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def reload_elsewhere(folder: Path, seed: int) -> dict[str, dict]:
    """Load and measure the saved models in a fresh Python process."""
    command = [sys.executable, __file__, "--reload", "--out", str(folder), "--seed", str(seed)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"Loading the models in a fresh process failed:\n{process.stderr}")
    return json.loads(process.stdout)


def differences(here: dict[str, dict], there: dict[str, dict]) -> list[str]:
    """Return a line for everything that a model did not keep across its file."""
    found = []
    for name, values in here.items():
        if not there[name]["regularizer"].startswith(("tfk_regularizers.", "-")):
            found.append(f"{name}: the file gave {there[name]['regularizer']}, which is not of this package")
        for key, value in values.items():
            other = there[name][key]
            same = value == other if isinstance(value, str) else math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9)
            if not same:
                found.append(f"{name}: {key} was {value} when trained and is {other} when loaded")
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    picture = Path(__file__).resolve().parent / "images" / "train_digits.png"
    parser = argparse.ArgumentParser(description="Train a digits classifier with each weight regularizer and compare.")
    parser.add_argument("--epochs", type=int, default=40, help="epochs for each of the five models (default: 40)")
    parser.add_argument("--out", type=Path, help="folder that keeps the .keras files (default: a temporary one)")
    parser.add_argument(
        "--plot", type=Path, default=picture, help="PNG to write (default: images/train_digits.png beside this script)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the split, the weights and the batches (default: 0)")
    parser.add_argument("--reload", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Train, save, show, and check the files."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # five models are five traces: the warning about retracing is not for us
    data = load_data(arguments.seed)
    if arguments.reload:
        models = {name: tf_keras.models.load_model(arguments.out / f"{name}.keras") for name in PENALTIES}
        print(json.dumps({name: measure(model, data) for name, model in models.items()}))
        return

    models = train(data, arguments.epochs, arguments.seed)
    measured = {name: measure(model, data) for name, model in models.items()}
    kernels = {name: model.get_layer("hidden").kernel.numpy() for name, model in models.items()}
    show_table(measured, kernels)
    draw(measured, kernels, arguments.plot)
    with contextlib.ExitStack() as stack:
        folder = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for name, model in models.items():
            model.save(folder / f"{name}.keras")
        changed = differences(measured, reload_elsewhere(folder, arguments.seed))
    if changed:
        sys.exit("\n".join(["The loaded models differ from the trained ones:", *changed]))
    print("Saved and loaded in a fresh process: all five models give the same losses and penalties.")
    print(f"Picture: {arguments.plot}" + (f"\nModels: {arguments.out}" if arguments.out else ""))


if __name__ == "__main__":
    main()
