"""Make a large kernel orthogonal with a sample of its rows per step, and compare with using all rows.

A random 2048 x 2048 kernel (Glorot) is trained by Adam only on the penalty: for ``--exact-steps`` with
``OrthogonalRegularizer``, which uses all pairs of rows in each step; and with ``SampledOrthogonalRegularizer``, which
draws new samples of 128, 256 or 512 rows in each step, for as many steps and for ``--sampled-steps``. In each run the
learning rate falls to a hundredth along a cosine. From time to time, the mean |cosine| of all pairs of rows is
measured; this does not count as training time. The script

* prints the mean |cosine| that each run reaches, its steps and seconds, and the milliseconds per step,
* draws the mean |cosine| against the steps and against the seconds (``--plot``).

Run it from anywhere, with the requirements of the examples installed (``pip install -e ".[examples]"``); it takes about
five minutes on two cores::

    python examples/sample_orthogonality.py --plot examples/images/sample_orthogonality.png
    python examples/sample_orthogonality.py --size 1024 --exact-steps 400 --sampled-steps 4000
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads this when it is imported

try:
    import matplotlib.pyplot as plt
    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
except ImportError as error:
    sys.exit(f'This example needs {error.name}. Install what the examples use: pip install -e ".[examples]"')

from tfk_regularizers import OrthogonalRegularizer, SampledOrthogonalRegularizer  # before tf_keras

# isort: split
import tensorflow as tf
import tf_keras

COLORS = {"all rows": "#2a6f97", "128": "#8d99ae", "256": "#e07a1f", "512": "#7a9e3f"}
MEASUREMENTS = 40


def train(sample_size: int | None, steps: int, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Train a kernel; return the steps, the seconds and the mean |cosine| of all rows at each measurement."""
    tf_keras.utils.set_random_seed(0)
    start_kernel = tf_keras.initializers.GlorotUniform()((arguments.size, arguments.size))
    kernel = tf.Variable(start_kernel)
    whole = OrthogonalRegularizer(1.0)
    regularizer = whole if sample_size is None else SampledOrthogonalRegularizer(1.0, sample_size=sample_size)
    rate = tf_keras.optimizers.schedules.CosineDecay(arguments.rate, steps, alpha=0.01)
    optimizer = tf_keras.optimizers.Adam(rate)
    optimizer.build([kernel])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            penalty = regularizer(kernel)
        optimizer.apply_gradients([(tf.convert_to_tensor(tape.gradient(penalty, kernel)), kernel)])

    measure = tf.function(lambda: whole(kernel))
    seen: dict[str, list[float]] = {"steps": [0], "seconds": [0.0], "cosine": [float(measure())]}
    step()  # trace and allocate, then reset the kernel and the optimizer
    kernel.assign(start_kernel)
    for variable in optimizer.variables:
        variable.assign(tf.zeros_like(variable) if variable.shape.rank or variable.dtype.is_integer else variable)
    for _ in track(range(MEASUREMENTS), f"{sample_size or 'all'} rows"):
        start = time.perf_counter()
        for _ in range(steps // MEASUREMENTS):
            step()
        kernel.numpy()
        seen["seconds"].append(seen["seconds"][-1] + time.perf_counter() - start)
        seen["steps"].append(seen["steps"][-1] + steps // MEASUREMENTS)
        seen["cosine"].append(float(measure()))
    return seen


def show(runs: dict[str, dict[str, list[float]]], arguments: argparse.Namespace) -> None:
    """Print the results of each run."""
    title = f"Mean |cosine| of the rows of a {arguments.size} x {arguments.size} kernel"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("rows per step", "steps", "ms per step", "seconds", "initial", "after 10 %", "final"):
        table.add_column(heading, justify="right")
    for name, seen in runs.items():
        steps, seconds, cosine = (seen[key] for key in ("steps", "seconds", "cosine"))
        middle = cosine[MEASUREMENTS // 10]
        cells = [f"{steps[-1]:.0f}", f"{1e3 * seconds[-1] / steps[-1]:.1f}", f"{seconds[-1]:.1f}"]
        table.add_row(name.split(",")[0], *cells, *(f"{value:.5f}" for value in (cosine[0], middle, cosine[-1])))
    Console().print(table)


def draw(runs: dict[str, dict[str, list[float]]], arguments: argparse.Namespace) -> None:
    """Draw the mean |cosine| against the steps and against the seconds."""
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, layout="constrained")
    for axes, key in zip(panels, ("steps", "seconds"), strict=True):
        for name, seen in runs.items():
            color = COLORS[name.split(",")[0]]
            style = "-" if seen["steps"][-1] == arguments.sampled_steps or color == COLORS["all rows"] else ":"
            axes.plot(seen[key][1:], seen["cosine"][1:], style, color=color, linewidth=2, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(key)
        axes.grid(color="#e6e9ec")
    panels[0].set_ylabel("mean |cosine| of all pairs of rows")
    panels[1].legend(frameon=False, title="rows in a step")
    figure.suptitle(f"A {arguments.size} × {arguments.size} kernel made orthogonal", fontsize=16, fontweight="bold")
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.plot, dpi=110)


def whole_measurements(text: str) -> int:
    """Return an argument as a number of steps, which must be a multiple of `MEASUREMENTS`."""
    steps = int(text)
    if steps < 1 or steps % MEASUREMENTS:
        raise argparse.ArgumentTypeError(f"expected a multiple of {MEASUREMENTS}, got {steps}")
    return steps


def main() -> None:
    """Train a kernel with each penalty, then print and draw the results."""
    parser = argparse.ArgumentParser(description="Make a large kernel orthogonal, with all rows and with samples.")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the kernel (default: 2048)")
    for name, steps in (("exact", 200), ("sampled", 2000)):
        text = f"training steps, a multiple of {MEASUREMENTS} (default: {steps})"
        parser.add_argument(f"--{name}-steps", type=whole_measurements, default=steps, help=text)
    parser.add_argument("--rate", type=float, default=1e-3, help="initial learning rate (default: 0.001)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the mean |cosine| over steps and seconds")
    arguments = parser.parse_args()
    runs = {"all rows": train(None, arguments.exact_steps, arguments)}
    for sample_size in (128, 256, 512):
        for steps in dict.fromkeys((arguments.exact_steps, arguments.sampled_steps)):
            runs[f"{sample_size}, {steps} steps"] = train(sample_size, steps, arguments)
    show(runs, arguments)
    if arguments.plot:
        draw(runs, arguments)


if __name__ == "__main__":
    main()
