"""Train a regularized classifier on several workers at once, with the same results as in one process.

`tf.distribute.MultiWorkerMirroredStrategy` keeps a copy of the model on every worker, gives each worker its share of
every batch and adds up their gradients. The regularizers need no changes for this. The network (64 pixels -> 64 ReLU
units -> 10 digits) learns scikit-learn's handwritten digits three times, with the same initial weights and the same
order of batches: with no penalty, with ``"l2"`` and with an orthogonal penalty on the hidden layer.

By default the script starts two workers on this machine, which communicate over the loopback interface. If one of them
dies, the script stops the other and reports it. With ``--single`` one process does the same without a strategy, and
prints the same table. (Gradients that are added in another order differ in the last bit. This difference grows until it
is visible after some hundred steps, soonest with an orthogonal penalty, whose gradient jumps where a cosine crosses
zero.) ::

    python examples/train_multiworker.py
    python examples/train_multiworker.py --single

To use several machines, start the script once on each, with the ``TF_CONFIG`` that TensorFlow requires: the addresses
are the same everywhere, and each machine has its own index. The first worker prints the table::

    TF_CONFIG='{"cluster": {"worker": ["first:12345", "second:12345"]}, "task": {"type": "worker", "index": 0}}' \\
        python examples/train_multiworker.py

The requirements of the examples must be installed (``pip install -e ".[examples]"``).
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
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

# The names of the models, and the kernel_regularizer of their hidden layers.
PENALTIES = {
    "none": None,
    "l2": "l2",
    "orthogonal": {"class_name": "OrthogonalRegularizer", "config": {"factor": 1.0, "mode": "rows"}},
}


def start_workers(number: int) -> None:
    """Run this script in several processes on the loopback interface; stop all of them when one fails."""
    # All sockets are open at the same time, so their ports differ.
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    command = [sys.executable, __file__, *sys.argv[1:], "--end-with-parent"]
    with contextlib.ExitStack() as stack:
        workers, logs = [], []
        for index in range(number):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            # The first worker shows its progress and the table; the output of the others is kept for errors.
            logs.append(None if index == 0 else stack.enter_context(tempfile.TemporaryFile("w+")))
            workers.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, "TF_CONFIG": json.dumps(config)},
                    stdin=subprocess.PIPE,
                    stdout=logs[index],
                    stderr=logs[index],
                    start_new_session=True,  # Ctrl-C only interrupts this process, which stops the workers
                )
            )
            stack.callback(end, workers[index])
        print(f"Workers: {', '.join(f'process {worker.pid}' for worker in workers)}.", file=sys.stderr)
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.1)
        # Report a killed worker first: the others fail because they miss it.
        failed = sorted((worker.returncode, index) for index, worker in enumerate(workers) if worker.poll())
        if failed:
            sys.exit(obituary(*failed[0], logs[failed[0][1]]))


def end(worker: subprocess.Popen) -> None:
    """Stop a process if it is running, and wait until it has ended."""
    worker.kill()
    worker.communicate()


def obituary(status: int, index: int, log) -> str:
    """Return the message about a worker that failed, with the last lines of its output."""
    how = f"was terminated by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"
    lines = []
    if log is not None:
        log.seek(0)
        lines = log.read().strip().splitlines()[-5:]
    return "\n".join([f"Worker {index} {how}; the others were stopped.", *lines])


def end_with_parent() -> None:
    """Exit as soon as the process that started this one has ended for any reason, which closes our stdin."""

    def wait():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def read_task() -> tuple[str, int]:
    """Return the type and the index of this process from TF_CONFIG, such as ("worker", 1)."""
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        kind, index = config["task"]["type"], int(config["task"]["index"])
        config["cluster"][kind][index]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        sys.exit(
            'TF_CONFIG should look like {"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", '
            f'"index": 0}}}}, with a task that is in the cluster. {type(error).__name__}: {error}'
        )
    if kind not in ("chief", "worker"):
        sys.exit(f"The task in TF_CONFIG should be of type 'chief' or 'worker', but is of type {kind!r}.")
    return kind, index


def load_data(seed: int):
    """Return x_train, x_test, y_train, y_test, with a quarter held out and pixels from 0 to 1."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    return train_test_split(images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)


def batches(x, y, size: int, seed: int):
    """Return shuffled batches for all workers together; TensorFlow gives each worker its share.

    The last, smaller batch is dropped, because its shares would differ in size, and the mean of their means would not
    be the mean of the batch.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed, reshuffle_each_iteration=True)
    return data.batch(size, drop_remainder=True).with_options(options)


def build(regularizer, seed: int):
    """Return the compiled classifier. Initializers with a seed give the same weights under every strategy."""
    layers, glorot = tf_keras.layers, tf_keras.initializers.GlorotUniform
    hidden = layers.Dense(64, "relu", kernel_initializer=glorot(seed), kernel_regularizer=regularizer, name="hidden")
    digit = layers.Dense(10, "softmax", kernel_initializer=glorot(seed + 1), name="digit")
    model = tf_keras.Sequential([tf_keras.Input([64]), hidden, digit])
    optimizer = tf_keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(strategy, data, arguments, shown: bool) -> dict[str, list]:
    """Fit one model for each penalty, with a progress bar; return the weights of each."""
    x_train, _, y_train, _ = data
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    weights = {}
    console = Console(stderr=True, quiet=not shown)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not shown) as progress:
        for name, regularizer in PENALTIES.items():
            task = progress.add_task(f"training {name}", total=arguments.epochs)
            advance = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, task=task: progress.advance(task))
            tf_keras.utils.set_random_seed(arguments.seed)
            with strategy.scope():
                model = build(regularizer, arguments.seed)
            model.fit(
                batches(x_train, y_train, arguments.batch, arguments.seed),
                epochs=arguments.epochs,
                verbose=0,
                callbacks=[advance],
            )
            weights[name] = model.get_weights()
    return weights


def show_table(weights: dict[str, list], data, seed: int) -> None:
    """Print one line for each model, which is measured here with a copy outside of the strategy."""
    _, x_test, _, y_test = data
    style = {"box": box.SIMPLE_HEAD, "show_edge": False, "collapse_padding": True, "pad_edge": False}
    title = "Hidden kernel: 64 pixels (rows) x 64 units"
    table = Table(title=title, title_style="bold", caption="test loss = data loss + penalty", **style)
    table.add_column("penalty")
    for heading in "test\naccuracy", "test\nloss", "penalty\nvalue", "norm of\nkernel", "row mean\n|cosine|":
        table.add_column(heading, justify="right")
    cosine = tfk_regularizers.OrthogonalRegularizer(factor=1.0)
    for name, regularizer in PENALTIES.items():
        model = build(regularizer, seed)
        model.set_weights(weights[name])
        loss, accuracy = model.evaluate(x_test, y_test, batch_size=len(x_test), verbose=0)
        kernel = model.get_layer("hidden").kernel
        numbers = loss, float(sum(model.losses)), float(tf.norm(kernel)), float(cosine(kernel))
        table.add_row(name, f"{accuracy:.1%}", *(f"{number:.4f}" for number in numbers))
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # keep the shape of the table when piped into a file
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a regularized digits classifier on several workers.")
    parser.add_argument("--single", action="store_true", help="train in one process, without a strategy")
    parser.add_argument("--workers", type=int, default=2, help="processes to start if TF_CONFIG is unset (default: 2)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs for each of the three models (default: 12)")
    parser.add_argument("--batch", type=int, default=128, help="batch size of all workers together (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, weights and batches (default: 0)")
    parser.add_argument("--end-with-parent", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.workers, arguments.epochs, arguments.batch) < 1:
        parser.error("--workers, --epochs and --batch should be at least 1")
    if arguments.single:
        os.environ.pop("TF_CONFIG", None)
    return arguments


def main(arguments: argparse.Namespace) -> None:
    """Train as a worker of TF_CONFIG, or in one process; the first worker shows the results."""
    tf.get_logger().setLevel("ERROR")
    data = load_data(arguments.seed)
    task = None if arguments.single else read_task()
    try:
        strategy = tf.distribute.get_strategy() if task is None else tf.distribute.MultiWorkerMirroredStrategy()
        if arguments.batch % strategy.num_replicas_in_sync:
            sys.exit(f"--batch {arguments.batch} cannot be shared equally by {strategy.num_replicas_in_sync} replicas.")
        chief = task in (None, ("chief", 0)) or (task == ("worker", 0) and strategy.cluster_resolver.task_id == 0)
        weights = train(strategy, data, arguments, shown=chief)
    except tf.errors.OpError as error:
        said = [line.strip() for line in error.message.splitlines() if line.strip() and "[[" not in line]
        sys.exit(f"Training stopped, most likely because another worker has ended. TensorFlow reports: {said[-1]}")
    if chief:
        show_table(weights, data, arguments.seed)


if __name__ == "__main__":
    options = parse_arguments()
    if not options.single and "TF_CONFIG" not in os.environ:
        try:
            start_workers(options.workers)
        except KeyboardInterrupt:
            sys.exit("Interrupted; the workers were stopped.")
        sys.exit()
    if options.end_with_parent:
        end_with_parent()

    import tfk_regularizers  # before tf_keras: "l2" is then the class of this package

    # isort: split
    import tensorflow as tf
    import tf_keras

    main(options)
