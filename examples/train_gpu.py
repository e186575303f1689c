"""Train a small convolutional network efficiently on GPUs: in mixed precision, compiled by XLA, on all GPUs.

The network (two convolutions, one hidden layer) learns scikit-learn's handwritten digits. Its convolutions are kept
orthogonal: ``OrthogonalRegularizer(mode="columns")`` treats a kernel of shape (height, width, channels, filters) as a
matrix whose columns are the filters, and drives these towards right angles. The dense layers have an L2 penalty.

* ``mixed_float16``: Layers compute in float16 and keep their weights in float32. Keras scales the loss automatically,
  so that small gradients do not vanish. Penalties and the last layer's softmax are computed in float32.
* ``jit_compile=True``: XLA compiles the whole step, including the penalties.
* ``MirroredStrategy``: Each GPU has a copy of the model and gets a share of each batch. Without a GPU there is one copy
  on the CPU. ``--replicas 2`` divides the CPU in two, to try the strategy out; then XLA is off, because TensorFlow
  cannot combine the two on CPUs.

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``)::

    python examples/train_gpu.py
    python examples/train_gpu.py --epochs 100 --batch 512
"""

import argparse
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads this when it is imported

try:
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    sys.exit(f'This example needs {error.name}. Install what the examples use: pip install -e ".[examples]"')

import numpy as np
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk


def load_data(seed: int):
    """Return x_train, x_test, y_train, y_test: images of shape (8, 8, 1) from 0 to 1, with a quarter held out."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    return train_test_split(images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)


def choose_strategy(replicas: int | None) -> tf.distribute.Strategy:
    """Return a MirroredStrategy over the GPUs, or over parts of the CPU if there is no GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(min(len(gpus), replicas or len(gpus)))])
    count = replicas or 1
    if count > 1:
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def device_names(strategy: tf.distribute.Strategy) -> list[str]:
    """Return short names of the devices, with the model of a GPU if TensorFlow knows it."""
    models = [
        tf.config.experimental.get_device_details(device).get("device_name")
        for device in tf.config.list_physical_devices("GPU")
    ]
    names = []
    for path in strategy.extended.worker_devices:
        device = tf.DeviceSpec.from_string(path)
        model = models[device.device_index] if device.device_type == "GPU" else None
        names.append(f"{device.device_type}:{device.device_index}" + (f" ({model})" if model else ""))
    return names


def build(steps: int, rate: float, jit_compile: bool) -> tf_keras.Model:
    """Return the classifier, compiled under the current strategy and policy. The learning rate falls to zero."""
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(32, 3, activation="relu", kernel_regularizer=orthogonal(), name="conv_1"),
            layers.Conv2D(64, 3, activation="relu", kernel_regularizer=orthogonal(), name="conv_2"),
            layers.Flatten(),
            layers.Dense(128, "relu", kernel_regularizer=tfk.L2(1e-4), name="hidden"),
            layers.Dense(10, kernel_regularizer=tfk.L2(1e-4), name="digit"),
            layers.Activation("softmax", dtype="float32", name="probabilities"),
        ]
    )
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit_compile)
    return model


def orthogonal() -> tfk.OrthogonalRegularizer:
    """Return the penalty of a convolution, whose filters are columns."""
    return tfk.OrthogonalRegularizer(factor=0.5, mode="columns")


def mean_cosine(kernel: np.ndarray) -> float:
    """Return the mean |cosine| over all pairs of filters."""
    filters = kernel.reshape(-1, kernel.shape[-1]).T
    filters = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    return float(np.abs(filters @ filters.T)[np.triu_indices(len(filters), 1)].mean())


class Clock(tf_keras.callbacks.Callback):
    """Advances a progress bar and times the epochs, except for the first one, which includes compilation."""

    def __init__(self, progress, task):
        super().__init__()
        self.progress, self.task = progress, task
        self.steps, self.seconds = 0, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if epoch > 0:
            self.seconds += time.perf_counter() - self.start
            self.steps += self.params["steps"]
        self.progress.update(self.task, advance=1, description=f"data loss {logs['data_loss']:.4f}")


def train(model: tf_keras.Model, data, batch: int, epochs: int) -> tuple[dict, float]:
    """Fit the model with a progress bar; return the history and the steps per second."""
    x_train, _, y_train, _ = data
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        clock = Clock(progress, progress.add_task("compiling", total=epochs))
        # Drop the last, smaller batch: XLA would compile the step again for it.
        batches = tf.data.Dataset.from_tensor_slices((x_train, y_train)).cache().shuffle(len(x_train))
        batches = batches.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
        with tfk.log_penalties(model):
            history = model.fit(batches, epochs=epochs, verbose=0, callbacks=[clock]).history
    return history, clock.steps / clock.seconds if clock.seconds else float("nan")


def show(rows: dict[str, str]) -> None:
    """Print the results as a table with two columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # keep the shape of the table when piped into a file
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a convolutional network in mixed precision on all GPUs.")
    parser.add_argument("--epochs", type=int, default=20, help="epochs (default: 20)")
    parser.add_argument("--batch", type=int, default=64, help="batch size of each replica (default: 64)")
    parser.add_argument("--rate", type=float, default=2e-3, help="initial learning rate (default: 0.002)")
    parser.add_argument("--replicas", type=int, help="GPUs to use, or parts of the CPU (default: all GPUs, or 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, weights and batches (default: 0)")
    arguments = parser.parse_args()
    if arguments.epochs < 1 or arguments.batch < 1 or (arguments.replicas or 1) < 1:
        parser.error("--epochs, --batch and --replicas must be at least 1")
    return arguments


def main() -> None:
    """Train, then print the devices, the settings and the results."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # hide the warning that float16 is slow on a CPU
    strategy = choose_strategy(arguments.replicas)
    devices, replicas = device_names(strategy), strategy.num_replicas_in_sync
    jit_compile = replicas == 1 or devices[0].startswith("GPU")
    tf_keras.utils.set_random_seed(arguments.seed)
    tf_keras.mixed_precision.set_global_policy("mixed_float16")

    data = load_data(arguments.seed)
    _, x_test, _, y_test = data
    batch = arguments.batch * replicas
    if batch > len(data[0]):
        sys.exit(f"A batch of {batch} images is larger than the {len(data[0])} for training: choose a smaller --batch.")
    with strategy.scope():
        model = build(arguments.epochs * (len(data[0]) // batch), arguments.rate, jit_compile)
    convolutions = [layer for layer in model.layers if layer.name.startswith("conv")]
    before = [mean_cosine(layer.kernel.numpy()) for layer in convolutions]
    history, speed = train(model, data, batch, arguments.epochs)
    _, accuracy = model.evaluate(x_test, y_test, batch_size=batch, verbose=0)

    rows = {
        "device": ", ".join(devices),
        "computed in": f"{model.layers[0].compute_dtype}, XLA {'on' if jit_compile else 'off'}",
        "steps per second": f"{speed:.1f}, with {batch} images each, without the first epoch",
        "test accuracy": f"{accuracy:.1%}",
        "data loss, first and last epoch": f"{history['data_loss'][0]:.4f} -> {history['data_loss'][-1]:.4f}",
        "penalty, first and last epoch": f"{history['penalty'][0]:.4f} -> {history['penalty'][-1]:.4f}",
    }
    for layer, cosine in zip(convolutions, before, strict=True):
        rows[f"mean |cosine| of the filters of {layer.name}"] = (
            f"{cosine:.3f} -> {mean_cosine(layer.kernel.numpy()):.3f}"
        )
    show(rows)


if __name__ == "__main__":
    main()
