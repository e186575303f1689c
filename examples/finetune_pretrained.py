"""Add regularizers to a trained model, fine-tune it, and compare with fine-tuning without them.

The first blocks of a MobileNetV2 learn scikit-learn's handwritten digits and are saved; they stand for a pretrained
model in a file. The loaded model has no penalty, and setting ``layer.kernel_regularizer`` on its layers would not
change its training, because they are built. ``set_regularizers`` adds L2 to the convolutions and an orthogonal penalty
to the head, in place and without changing a weight. Then the model is fine-tuned, and ``log_penalties`` logs the two
parts of the loss. The same file is loaded a second time and fine-tuned without penalties, with the same order of
batches. The script

* prints test accuracy and data loss before fine-tuning, without and with penalties, and the differences in each run,
* prints a table of the largest penalties of the first run, before and after fine-tuning (``penalties``),
* draws data loss, penalty and accuracy over the epochs (``--plot``),
* writes logs of the first run for TensorBoard (``--logs``) and keeps its models (``--out``), if you name the folders.

All numbers but those in the table of penalties are means of ``--runs`` runs, each with its own split and initial
weights; ± is their standard deviation. One of the 450 test images is 0.2 %.

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``)::

    python examples/finetune_pretrained.py
    python examples/finetune_pretrained.py --epochs 30 --l2 1e-4 --logs logs   # and then: tensorboard --logdir logs
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read by TensorFlow's C++ side when it is imported

try:
    import matplotlib.pyplot as plt
    import tensorboard  # noqa: F401  (tf_keras.callbacks.TensorBoard needs it)
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

SIZE = 32  # the smallest image that a MobileNetV2 accepts
BATCH = 64
BEFORE, WITHOUT, WITH = "before", "without", "with"
COLORS = {BEFORE: "#8d99ae", WITHOUT: "#e07a1f", WITH: "#2a6f97"}


def load_data(seed: int):
    """Return (x_train, y_train), (x_test, y_test): digits enlarged to 32x32, with three channels from -1 to 1."""
    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] / 8 - 1, (SIZE, SIZE)).numpy()
    images = np.repeat(images, 3, axis=-1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
    )
    return (x_train, y_train), (x_test, y_test)


def build() -> tf_keras.Model:
    """Return the first blocks of a small MobileNetV2 with a new head; nothing is downloaded."""
    whole = tf_keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, weights=None, include_top=False)
    features = tf_keras.layers.GlobalAveragePooling2D()(whole.get_layer("block_6_expand_relu").output)
    model = tf_keras.Model(whole.input, tf_keras.layers.Dense(10, "softmax", name="predictions")(features))
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 is for longer training
    return model


def fit(model: tf_keras.Model, data, *, epochs: int, rate: float, seed: int, callbacks) -> dict[str, list[float]]:
    """Compile the model and train it; return its history."""
    train, test = data
    steps = epochs * -(-len(train[0]) // BATCH)
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    tf_keras.utils.set_random_seed(seed)  # for the order of the batches
    tfk_regularizers.log_penalties(model)
    return model.fit(*train, BATCH, epochs, 0, callbacks, validation_data=test).history


def regularize(model: tf_keras.Model, l2: float, orthogonal: float) -> list[str]:
    """Add L2 to the convolutions and the orthogonal penalty to the head; return the paths of their weights."""
    convolutions = tfk_regularizers.set_regularizers(
        model,
        kernel_regularizer=tfk_regularizers.L2(l2),
        where=lambda layer: isinstance(layer, tf_keras.layers.Conv2D),
    )
    head = tfk_regularizers.set_regularizers(
        model,
        # The columns are the weights of the ten digits: no two digits should use the same features.
        kernel_regularizer=tfk_regularizers.OrthogonalRegularizer(orthogonal, mode="columns"),
        where=lambda layer: layer is model.layers[-1],
    )
    return convolutions + head


def measure(model: tf_keras.Model) -> dict[str, float]:
    """Return the penalty of each weight as a number."""
    return {path: float(value) for path, value in tfk_regularizers.penalties(model).items()}


def run(seed: int, arguments: argparse.Namespace, folder: Path, logs, advance) -> dict:
    """Train and save a model, load it twice, and fine-tune it without and with penalties; check the files."""
    data = load_data(seed)
    watching = [tf_keras.callbacks.LambdaCallback(on_epoch_end=advance)]
    tf_keras.utils.set_random_seed(seed)
    model = build()
    histories = {BEFORE: fit(model, data, epochs=arguments.pretraining, rate=3e-3, seed=seed, callbacks=watching)}
    model.save(folder / "pretrained.keras")
    tuning = {"epochs": arguments.epochs, "rate": arguments.rate, "seed": seed}

    model = tf_keras.models.load_model(folder / "pretrained.keras")
    histories[WITHOUT] = fit(model, data, **tuning, callbacks=watching)

    model = tf_keras.models.load_model(folder / "pretrained.keras")
    paths = regularize(model, arguments.l2, arguments.orthogonal)
    before = measure(model)
    board = [tf_keras.callbacks.TensorBoard(str(logs))] if logs else []
    histories[WITH] = history = fit(model, data, **tuning, callbacks=[*watching, *board])
    model.save(folder / "finetuned.keras")
    after = measure(tf_keras.models.load_model(folder / "finetuned.keras"))

    if not np.allclose(history["val_loss"], np.add(history["val_data_loss"], history["val_penalty"]), rtol=1e-5):
        sys.exit("Data loss and penalty do not add up to the loss.")
    if not np.allclose(list(after.values()), list(measure(model).values()), rtol=1e-6):
        sys.exit("The penalties of the saved model differ.")
    return {"histories": histories, "paths": paths, "before": before, "after": after}


def run_all(arguments: argparse.Namespace) -> list[dict]:
    """Do all runs with a progress bar."""
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("epochs")
    results = []
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stack.enter_context(Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)))
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            task = progress.add_task(f"run {len(results) + 1}", total=arguments.pretraining + 2 * arguments.epochs)
            folder, logs = (temporary, None) if results else (arguments.out or temporary, arguments.logs)
            folder.mkdir(parents=True, exist_ok=True)
            results.append(run(seed, arguments, folder, logs, lambda *_, task=task: progress.advance(task)))
    return results


def new_table(title: str, first: str, headings, caption: str = "") -> Table:
    """Return an empty table with one column of text, followed by columns of numbers."""
    style = {"box": box.SIMPLE_HEAD, "show_edge": False, "collapse_padding": True, "pad_edge": False}
    table = Table(title=title, title_style="bold", caption=caption, **style)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def spread(values, form: str) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    deviation = f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + deviation


def show(results: list[dict], rows: int) -> None:
    """Print the comparison, the differences run by run, and the largest penalties of the first run."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # keep the shape of the tables when piped into a file
    final = {
        name: {key: [r["histories"][name][key][-1] for r in results] for key in results[0]["histories"][name]}
        for name in COLORS
    }
    caption = f"mean ± standard deviation of {len(results)} runs"
    headings = "test accuracy\n(%)", "test\ndata loss", "train\ndata loss", "penalty"
    table = new_table("Fine-tuning with and without penalties", "penalties", headings, caption)
    for name, values in final.items():
        accuracy = spread(100 * np.array(values["val_accuracy"]), "{:.1f}")
        losses = (spread(values[key], "{:.3f}") for key in ("val_data_loss", "data_loss", "val_penalty"))
        table.add_row({BEFORE: "before fine-tuning"}.get(name, name), accuracy, *losses)
    console.print(table)
    gains = np.subtract(final[WITH]["val_accuracy"], final[WITHOUT]["val_accuracy"])
    losses = np.subtract(final[WITH]["val_data_loss"], final[WITHOUT]["val_data_loss"])
    print(
        f"with - without, in each run: accuracy {', '.join(f'{100 * gain:+.1f}' for gain in gains)} points; "
        f"test data loss {', '.join(f'{loss:+.3f}' for loss in losses)}\n"
    )

    before, after, paths = (results[0][key] for key in ("before", "after", "paths"))
    table = new_table(
        f"Penalties of the {len(paths)} regularized weights, largest first", "weight", ("before", "after")
    )
    largest = sorted(before, key=before.get, reverse=True)
    for path in largest[:rows]:
        table.add_row(path, f"{before[path]:.4f}", f"{after[path]:.4f}")
    others = [sum(values[path] for path in largest[rows:]) for values in (before, after)]
    table.add_row(f"{len(largest) - rows} others", *(f"{value:.4f}" for value in others))
    table.add_row("sum", *(f"{sum(values.values()):.4f}" for values in (before, after)), style="bold")
    console.print(table)


def draw(results: list[dict], file: Path) -> None:
    """Draw data loss, penalty and accuracy over the epochs, as means of the runs."""
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    histories = {
        name: {key: np.mean([r["histories"][name][key] for r in results], axis=0) for key in one}
        for name, one in results[0]["histories"].items()
    }
    first = len(histories[BEFORE]["loss"])
    start = np.mean([sum(r["before"].values()) for r in results])  # the penalty before the first step
    labels = {BEFORE: "before fine-tuning", WITHOUT: "without penalties", WITH: "with penalties"}
    for axis, key in zip(axes, ("data_loss", "penalty", "accuracy"), strict=True):
        for name, values in histories.items():
            for prefix, style in ("", ":"), ("val_", "-"):
                curve = values[prefix + key]
                at = np.arange(1, len(curve) + 1)
                if name != BEFORE:  # the lines continue from the end of pretraining
                    at = np.arange(first, first + len(curve) + 1)
                    end = start if (name, key) == (WITH, "penalty") else histories[BEFORE][prefix + key][-1]
                    curve = np.concatenate([[end], curve])
                axis.plot(at, curve, style, color=COLORS[name], label=labels[name] if prefix else None)
        axis.set_title(key.replace("_", " "), fontweight="bold", loc="left")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlim(0.5, first + len(histories[WITH]["loss"]) + 0.5)
    axes[0].set_yscale("log")
    axes[2].set_ylim(0.9, 1.003)
    axes[0].plot([], [], ":", color="0.3", label="(dotted: train)")
    axes[0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    picture = Path(__file__).resolve().parent / "out" / "finetune_pretrained.png"
    parser = argparse.ArgumentParser(description="Add regularizers to a trained MobileNetV2 and fine-tune it.")
    parser.add_argument("--pretraining", type=int, default=10, help="epochs without regularizers (default: 10)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of fine-tuning (default: 10)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of fine-tuning (default: 2e-3)")
    parser.add_argument("--l2", type=float, default=1e-3, help="factor of L2 on the convolutions (default: 1e-3)")
    parser.add_argument(
        "--orthogonal", type=float, default=5.0, help="factor of orthogonality on the head (default: 5.0)"
    )
    parser.add_argument("--out", type=Path, help="folder for the .keras files (default: a temporary one)")
    parser.add_argument("--logs", type=Path, help="folder for TensorBoard logs (default: no logs)")
    parser.add_argument(
        "--plot", type=Path, default=picture, help=f"PNG to write (default: out/{picture.name} next to this script)"
    )
    parser.add_argument("--runs", type=int, default=3, help="number of runs (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="first run's seed: split, weights, batches (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Train and save a model, load and fine-tune it, and show the results."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # each model is traced once: the warning about retracing does not apply
    results = run_all(arguments)
    show(results, rows=4)
    draw(results, arguments.plot)
    print("Data loss and penalty add up to the loss in every epoch, and the saved models have all penalties.")
    print(f"Picture: {arguments.plot}")


if __name__ == "__main__":
    main()
