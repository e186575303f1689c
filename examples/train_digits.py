"""Train a small classifier with each weight regularizer, and show how the penalties change the weights.

The same network (64 pixels -> 64 ReLU units -> 10 digits) learns scikit-learn's handwritten digits five times, with the
same initial weights and the same order of batches. Only the ``kernel_regularizer`` of the hidden layer differs: none,
``"l1"``, ``"l2"``, ``"l1_l2"`` (all with their default factor, 0.01) and an orthogonal one. The script

* prints a table: test accuracy, test loss, penalty, and two measures of the hidden kernel,
* draws the accuracies and the hidden kernels (``--plot``),
* saves the five models as ``.keras`` files (``--out``), loads them in a new process and checks that every loss and
  every penalty is the same there (the exit status is 1 if one is not),
* repeats the training in ``--runs`` runs, with the classes of this package and with the built-in ones (``unregister``),
  and prints how much the results differ and how long training took. Models whose penalties agree up to rounding need
  not end with the same weights, because 1700 steps amplify the rounding errors. For comparison, the table also shows by
  how much the built-in's results change if its initial hidden kernel is moved by one float32 rounding ("nudged").

The hidden kernel has shape (64, 64): row i holds the outgoing weights of pixel i. L1 sets most of them to zero, L2
makes all of them small, and the orthogonal penalty turns the rows until they are nearly at right angles. Without a
penalty, a pixel that is blank in every image keeps its initial weights. L1 and L2 take them to zero, which leaves a
pale line in the picture, because a row of zeros has a cosine of 0 with every other row.

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
import time
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

import tfk_regularizers  # before tf_keras: "l1", "l2" and "l1_l2" are then the classes of this package

# isort: split
import numpy as np
import tensorflow as tf
import tf_keras

PENALTIES = ("none", "l1", "l2", "l1_l2", "orthogonal")
BATCH = 32


def load_data(seed: int):
    """Return x_train, x_test, y_train, y_test, with a quarter held out and pixels from 0 to 1."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    return train_test_split(images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)


def build(name: str, steps: int, epochs: int) -> tf_keras.Model:
    """Return the compiled classifier. The learning rate falls to zero, which lets small weights settle."""
    # These are the classes of this package, or the built-in ones after `unregister`.
    regularizer = {"none": None, "orthogonal": tf_keras.regularizers.OrthogonalRegularizer(factor=1.0, mode="rows")}
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(
                64, "relu", kernel_regularizer=regularizer.get(name, name), input_shape=(64,), name="hidden"
            ),
            tf_keras.layers.Dense(10, "softmax", name="digit"),
        ]
    )
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(5e-3, steps * epochs))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=steps)
    return model


def train(name: str, seed: int, epochs: int, advance, nudge: bool = False) -> dict:
    """Fit one model; return it with its predictions, its measurements and the seconds that ``fit`` took."""
    data = x_train, _, y_train, _ = load_data(seed)
    tf_keras.utils.set_random_seed(seed)
    model = build(name, math.ceil(len(x_train) / BATCH), epochs)
    kernel = model.get_layer("hidden").kernel
    if nudge:
        kernel.assign(np.nextafter(kernel.numpy(), np.float32(np.inf)))
    callback = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance())
    start = time.perf_counter()
    model.fit(x_train, y_train, BATCH, epochs, verbose=0, callbacks=[callback])
    seconds = time.perf_counter() - start
    predicted = np.argmax(model(data[1]).numpy(), axis=1)
    return {"model": model, "seconds": seconds, "predicted": predicted, "measured": measure(model, data)}


def train_all(runs: list[dict], variants, arguments: argparse.Namespace) -> None:
    """Fit each model in each variant and run that does not have it yet, with a progress bar."""
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for name in PENALTIES:
            todo = [(which, *item) for item in enumerate(runs, arguments.seed) for which in variants]
            todo = [(which, seed, run) for which, seed, run in todo if (name, which) not in run]
            task = progress.add_task(f"training {name}", total=len(todo) * arguments.epochs)
            for which, seed, run in todo:
                if which != "ours":
                    tfk_regularizers.unregister()
                try:
                    advance = lambda task=task: progress.advance(task)  # noqa: E731
                    run[name, which] = train(name, seed, arguments.epochs, advance, nudge=which == "nudged")
                finally:
                    tfk_regularizers.register()


def measure(model: tf_keras.Model, data) -> dict:
    """Return the model's regularizer, test loss (data loss + penalty), accuracy and penalty."""
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


def new_table(title: str, caption: str, headings) -> Table:
    """Return an empty table whose first column names the penalty."""
    style = {"box": box.SIMPLE_HEAD, "show_edge": False, "collapse_padding": True, "pad_edge": False}
    table = Table(title=title, title_style="bold", caption=caption, **style)
    table.add_column("penalty")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def show_table(measured: dict[str, dict], kernels: dict[str, np.ndarray]) -> None:
    """Print one line for each model."""
    headings = "class", "test\naccuracy", "test\nloss", "penalty\nvalue", "weights\n< 0.001", "row mean\n|cosine|"
    caption = "test loss = data loss + penalty"
    table = new_table("Hidden kernel: 64 pixels (rows) x 64 units", caption, headings)
    table.columns[1].justify = "left"
    for name, values in measured.items():
        kernel = describe(kernels[name])
        numbers = f"{values['accuracy']:.1%}", f"{values['loss']:.4f}", f"{values['penalty']:.4f}"
        kind = values["regularizer"].rpartition(".")[2]
        table.add_row(name, kind, *numbers, f"{kernel['small']:.1%}", f"{kernel['cosine']:.3f}")
    show(table)


def show_comparison(runs: list[dict]) -> None:
    """Print for each penalty how much ours and the nudged built-in differ from the built-in after training."""
    headings = "loss\nours", "\nnudged", "weight\nours", "\nnudged", "predicted\nours", "\nnudged"
    tests = sum(len(run["none", "ours"]["predicted"]) for run in runs)
    title = f"Largest difference from the built-in after training, {len(runs)} runs"
    caption = f"loss: of the test images; predicted: differences in {tests} predictions; fit: median"
    table = new_table(title, caption, (*headings, "fit, s\nbuilt-in", "\nours"))
    for name in PENALTIES:
        columns = []
        for other in "ours", "nudged":
            pairs = [distances(run[name, "built-in"], run[name, other]) for run in runs]
            losses, weights, predictions = zip(*pairs, strict=True)
            columns.append([f"{max(losses):.0e}", f"{max(weights):.0e}", f"{sum(predictions)}"])
        cells = [cell if float(cell) else "0" for pair in zip(*columns, strict=True) for cell in pair]
        seconds = (np.median([run[name, which]["seconds"] for run in runs]) for which in ("built-in", "ours"))
        table.add_row(name, *cells, *(f"{value:.1f}" for value in seconds))
    show(table)


def show(table: Table) -> None:
    """Print a table."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # keep the shape of the table when piped into a file
    console.print(table)


def distances(one: dict, other: dict) -> tuple[float, float, int]:
    """Return how much two models differ: in test loss, in their weights at most, and in how many predictions."""
    weights = zip(one["model"].get_weights(), other["model"].get_weights(), strict=True)
    return (
        abs(one["measured"]["loss"] - other["measured"]["loss"]),
        max(np.abs(a - b).max() for a, b in weights),
        np.count_nonzero(one["predicted"] != other["predicted"]),
    )


def draw(measured: dict[str, dict], kernels: dict[str, np.ndarray], file: Path) -> None:
    """Draw a histogram of the weights of each hidden kernel, and below it the cosines of its rows."""
    plt.switch_backend("Agg")  # write files without a display
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, len(kernels), figsize=(14, 7.2), sharex="row", sharey="row", layout="constrained")
    figure.get_layout_engine().set(hspace=0.05, wspace=0.03)
    limit = max(np.abs(kernel).max() for kernel in kernels.values())
    bins = np.linspace(-limit, limit, 62)  # 61 bins: the middle one is centered at zero
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
    """Load and measure the saved models in a new Python process."""
    command = [sys.executable, __file__, "--reload", "--out", str(folder), "--seed", str(seed)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"Loading the models in a new process failed:\n{process.stderr}")
    return json.loads(process.stdout)


def differences(here: dict[str, dict], there: dict[str, dict]) -> list[str]:
    """Return a line for each measurement of a model that changed when it was saved and loaded."""
    found = []
    for name, values in here.items():
        if not there[name]["regularizer"].startswith(("tfk_regularizers.", "-")):
            found.append(f"{name}: the loaded regularizer {there[name]['regularizer']} is not of this package")
        for key, value in values.items():
            other = there[name][key]
            same = value == other if isinstance(value, str) else math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9)
            if not same:
                found.append(f"{name}: {key} is {value} after training and {other} after loading")
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    picture = Path(__file__).resolve().parent / "out" / "train_digits.png"
    parser = argparse.ArgumentParser(description="Train a digits classifier with each weight regularizer and compare.")
    parser.add_argument("--epochs", type=int, default=40, help="epochs for each of the five models (default: 40)")
    parser.add_argument("--out", type=Path, help="folder for the .keras files (default: a temporary one)")
    parser.add_argument(
        "--plot", type=Path, default=picture, help="PNG to write (default: out/train_digits.png next to this script)"
    )
    parser.add_argument("--seed", type=int, default=0, help="first run's seed: split, weights, batches (default: 0)")
    parser.add_argument("--runs", type=int, default=3, help="runs to compare with the built-in (default: 3)")
    parser.add_argument("--reload", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Train and save the models, show the results, and check the files."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # each model is traced once: the warning about retracing does not apply
    if arguments.reload:
        models = {name: tf_keras.models.load_model(arguments.out / f"{name}.keras") for name in PENALTIES}
        print(json.dumps({name: measure(model, load_data(arguments.seed)) for name, model in models.items()}))
        return

    runs = [{} for _ in range(arguments.runs)]
    train_all(runs[:1], ["ours"], arguments)
    models = {name: runs[0][name, "ours"]["model"] for name in PENALTIES}
    measured = {name: runs[0][name, "ours"]["measured"] for name in PENALTIES}
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
    print("After saving and loading in a new process, all five models give the same losses and penalties.")
    print(f"Picture: {arguments.plot}" + (f"\nModels: {arguments.out}" if arguments.out else ""))

    train_all(runs, ["ours", "built-in", "nudged"], arguments)
    for name in PENALTIES:
        kinds = [runs[0][name, which]["measured"]["regularizer"].partition(".")[0] for which in ("ours", "built-in")]
        if name != "none" and kinds != ["tfk_regularizers", "tf_keras"]:
            sys.exit(f"{name}: compared {kinds[0]} with {kinds[1]}, not this package with tf_keras.")
    show_comparison(runs)


if __name__ == "__main__":
    main()
