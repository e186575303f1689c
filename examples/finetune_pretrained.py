"""Add regularizers to a trained model and train on, with data loss and penalty apart.

A MobileNetV2 learns scikit-learn's handwritten digits and is saved: it stands for the pretrained model that one has
in a file. Loaded again, it has no penalty at all, and setting ``layer.kernel_regularizer`` on its layers would change
nothing, because they are built. ``set_regularizers`` adds L2 to its convolutions and an orthogonal penalty to its head,
in place and without touching a weight; then it is trained on with a ``PenaltyLogger``. The script

* prints, epoch by epoch, the data loss and the penalty, whose sum is all that Keras shows otherwise,
* prints the largest penalties before and after as a table (``penalties``),
* draws data loss, penalty and accuracy over the epochs (``--plot``),
* writes the same numbers for TensorBoard (``--logs``) and keeps the two models (``--out``) if it is told where.

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``)::

    python examples/finetune_pretrained.py
    python examples/finetune_pretrained.py --epochs 30 --l2 1e-3 --logs logs   # and then: tensorboard --logdir logs
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

SIZE = 32  # the smallest image that a MobileNetV2 takes
BATCH = 64


def load_data(seed: int):
    """Return (x_train, y_train), (x_test, y_test): the digits from 8x8 to 32x32, in three channels from -1 to 1."""
    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] / 8 - 1, (SIZE, SIZE)).numpy()
    images = np.repeat(images, 3, axis=-1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
    )
    return (x_train, y_train), (x_test, y_test)


def build() -> tf_keras.Model:
    """Return a small MobileNetV2 that has learned nothing; nothing is downloaded."""
    model = tf_keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, weights=None, classes=10)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 is for training longer than this
    return model


def fit(model: tf_keras.Model, data, *, epochs: int, rate: float, title: str, callbacks=()) -> dict[str, list[float]]:
    """Compile the model and train it behind a progress bar; return its history."""
    train, test = data
    steps = epochs * -(-len(train[0]) // BATCH)
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    columns = TextColumn("{task.description:<11}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=epochs, loss="")

        def advance(_, logs):
            names = ("data_loss", "penalty") if "penalty" in logs else ("loss",)
            progress.update(task, advance=1, loss=" + ".join(f"{name} {logs[name]:.3f}" for name in names))

        callbacks = [*callbacks, tf_keras.callbacks.LambdaCallback(on_epoch_end=advance)]
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
        # The columns are the weights of the ten digits: no two digits shall look at the same features.
        kernel_regularizer=tfk_regularizers.OrthogonalRegularizer(orthogonal, mode="columns"),
        where=lambda layer: layer is model.layers[-1],
    )
    return convolutions + head


def measure(model: tf_keras.Model) -> dict[str, float]:
    """Return the penalty of each weight as a number."""
    return {path: float(value) for path, value in tfk_regularizers.penalties(model).items()}


def show_table(before: dict[str, float], after: dict[str, float], rows: int) -> None:
    """Print the largest penalties and the sum of the others."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # piped into a file, the table keeps its shape
    table = Table(title="Penalties of the weights, the largest first", title_style="bold")
    table.add_column("weight")
    for heading in "before\nfine-tuning", "after\nfine-tuning":
        table.add_column(heading, justify="right")
    paths = sorted(before, key=before.get, reverse=True)
    for path in paths[:rows]:
        table.add_row(path, f"{before[path]:.4f}", f"{after[path]:.4f}")
    others = [[values[path] for path in paths[rows:]] for values in (before, after)]
    table.add_row(f"{len(paths) - rows} others", *(f"{sum(values):.4f}" for values in others), end_section=True)
    table.add_row("sum", *(f"{sum(values.values()):.4f}" for values in (before, after)), style="bold")
    console.print(table)


def draw(pretraining: dict, tuning: dict, file: Path) -> None:
    """Write the picture: data loss, penalty and accuracy over the epochs of both trainings."""
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    first = len(pretraining["loss"])
    epochs = np.arange(1, first + len(tuning["loss"]) + 1)
    # While there was no penalty, the loss was the data loss.
    curves = {
        "data loss": (pretraining["loss"] + tuning["data_loss"], pretraining["val_loss"] + tuning["val_data_loss"]),
        "penalty": ([0.0] * first + tuning["penalty"], [0.0] * first + tuning["val_penalty"]),
        "accuracy": tuple(pretraining[name] + tuning[name] for name in ("accuracy", "val_accuracy")),
    }
    for axis, (title, (train, test)) in zip(axes, curves.items(), strict=True):
        axis.axvspan(0.5, first + 0.5, color="#eeeeee", label="before regularizers")
        axis.plot(epochs, train, color="#3b6fb6", label="train")
        axis.plot(epochs, test, color="#d1603d", label="test")
        axis.set_title(title, fontweight="bold")
        axis.set_xlabel("epoch")
        axis.set_xlim(0.5, epochs[-1] + 0.5)
    axes[0].set_yscale("log")
    axes[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    picture = Path(__file__).resolve().parent / "images" / "finetune_pretrained.png"
    parser = argparse.ArgumentParser(description="Add regularizers to a trained MobileNetV2 and train on.")
    parser.add_argument("--pretraining", type=int, default=20, help="epochs without regularizers (default: 20)")
    parser.add_argument("--epochs", type=int, default=25, help="epochs with regularizers (default: 25)")
    parser.add_argument("--l2", type=float, default=1e-3, help="factor of L2 on the convolutions (default: 1e-3)")
    parser.add_argument("--orthogonal", type=float, default=5.0, help="factor of orthogonality (default: 5.0)")
    parser.add_argument("--out", type=Path, help="folder that keeps the .keras files (default: a temporary one)")
    parser.add_argument("--logs", type=Path, help="folder for TensorBoard (default: a temporary one)")
    parser.add_argument(
        "--plot", type=Path, default=picture, help=f"PNG to write (default: images/{picture.name} here)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the split, the weights and the batches (default: 0)")
    return parser.parse_args()


def main() -> None:
    """Train and save, load and regularize, train on, show."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")
    tf_keras.utils.set_random_seed(arguments.seed)
    data = load_data(arguments.seed)
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder, logs = arguments.out or temporary, arguments.logs or temporary / "logs"
        folder.mkdir(parents=True, exist_ok=True)

        model = build()
        pretraining = fit(model, data, epochs=arguments.pretraining, rate=3e-3, title="pretraining")
        model.save(folder / "pretrained.keras")

        model = tf_keras.models.load_model(folder / "pretrained.keras")
        paths = regularize(model, arguments.l2, arguments.orthogonal)
        print(f"The loaded model has penalties on {len(paths)} weights now, from {paths[0]} to {paths[-1]}.")
        before = measure(model)
        watching = [tfk_regularizers.PenaltyLogger(), tf_keras.callbacks.TensorBoard(str(logs))]
        tuning = fit(model, data, epochs=arguments.epochs, rate=2e-3, title="fine-tuning", callbacks=watching)
        model.save(folder / "finetuned.keras")
        reloaded = tf_keras.models.load_model(folder / "finetuned.keras")

    show_table(before, measure(model), rows=8)
    draw(pretraining, tuning, arguments.plot)
    accuracies = pretraining["val_accuracy"][-1], tuning["val_accuracy"][-1]
    print("Test accuracy {:.1%} before fine-tuning, {:.1%} after.".format(*accuracies))
    if not np.allclose(tuning["val_loss"], np.add(tuning["val_data_loss"], tuning["val_penalty"]), rtol=1e-5):
        sys.exit("Data loss and penalty do not add up to the loss.")
    if not np.allclose(list(measure(reloaded).values()), list(measure(model).values()), rtol=1e-6):
        sys.exit("The penalties did not survive their file.")
    print("Data loss and penalty add up to the loss in every epoch, and the saved model has all penalties.")


if __name__ == "__main__":
    main()
