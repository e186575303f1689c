"""Measure this package against tf_keras's built-in regularizers: speed, memory, training steps, rounding errors.

Everything is measured side by side in one process, the built-in and this package's in turn, and medians are shown.
Memory and first calls are measured in processes of their own. Five tables:

* ``speed``: each penalty on several shapes, eagerly, in a ``tf.function`` (graph) and in one compiled by XLA, the value
  alone and with its gradient. "% of the limit" compares with what this machine can do at all, measured at the start.
  For orthogonality that is the rate of a large matrix product: F = n² d multiply-adds make the Gram matrix of n rows,
  0.5 F are needed for the value, 1.5 F with the gradient. For the others it is the rate of a large copy: the value
  reads the tensor once; the gradient reads it once more and writes one like it. What fits into a cache may beat that.
* ``memory``: peak memory that one value and gradient of the orthogonality penalty needs beside its input, and seconds
  of its first call under XLA, compilation included.
* ``step``: what the penalties add to a training step of an MLP of four 2048-unit Dense layers, batch 128.
* ``error``: relative errors of the values against float64.
* ``hand``: the penalties that tf_keras lacks, beside the lines that people write for them, value and gradient and the
  value alone; and soft orthogonality of a million rows of 64 beside one matrix product, with its peak memory.

In ``speed`` and ``hand`` the same function is measured twice besides, in the same rounds. What 19 of 20 such pairs
differ by at most is the noise of the table. It stands below the title, and a ratio no farther from 1 has a ``~``.

Warm-up (tracing, compilation, first allocation) is never part of a time, but where the table says "first".
TensorFlow chooses the device: a GPU if there is one. Run it on an otherwise idle machine; it takes about a quarter of
an hour and 8 GB of memory, ``--quick`` about a minute and 2 GB. It needs ``pip install -e ".[examples]"``::

    python examples/benchmark.py --markdown examples/benchmark.md --plot examples/images/benchmark.png
    python examples/benchmark.py --quick --tables speed step
    python examples/benchmark.py --json results.json
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read by TensorFlow's C++ side when it is imported

try:
    import matplotlib.pyplot as plt
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    sys.exit(f'This example needs {error.name}. Install what the examples use: pip install -e ".[examples]"')

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.regularizers import L1, L1L2, L2, OrthogonalRegularizer  # the built-in ones, before the next import

# isort: split
import tfk_regularizers

warnings.filterwarnings("ignore", message="The .* of tf_keras itself is in use")  # on purpose

BUILTIN = {"L1": L1, "L2": L2, "L1L2": L1L2, "Orthogonal": OrthogonalRegularizer}
OURS = {penalty: getattr(tfk_regularizers, cls.__name__) for penalty, cls in BUILTIN.items()}
SIDES = {"builtin": BUILTIN, "ours": OURS}
# Their colours in the picture, where each stands for one thing.
MODES = {"eager": "#8d99ae", "graph": "#2a6f97", "XLA": "#e07a1f"}
SIDE_COLORS = {"builtin": "#7b4fa3", "ours": "#2e8b57"}
SHAPES = {penalty: [(64, 64), (300, 300), (1000, 1000), (4096, 4096), (8000, 8000)] for penalty in ("L1", "L2", "L1L2")}
SHAPES["Orthogonal"] = [(64, 64), (512, 512), (512, 4608), (1024, 256), (2048, 2048), (4096, 512), (8192, 64)]
QUICK_SHAPES = {penalty: [(300, 300), (2000, 2000)] for penalty in ("L1", "L2", "L1L2")}
QUICK_SHAPES["Orthogonal"] = [(512, 512), (4096, 64)]


def make(side: str, penalty: str, factor: float):
    """Return the built-in regularizer or ours, with all its factors the same."""
    return SIDES[side][penalty](*[factor] * (2 if penalty == "L1L2" else 1))


def as_function(regularizer, mode: str, gradient: bool):
    """Return what is measured: a function from a tensor to [value] or [value, gradient]."""

    def value_alone(x):
        return [regularizer(x)]

    def with_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = regularizer(x)
        return [value, tape.gradient(value, x)]

    function = with_gradient if gradient else value_alone
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "XLA" or None, autograph=False)


def normal(shape, dtype: str = "float32") -> tf.Tensor:
    """Return a random tensor, the same at every call."""
    return tf.cast(tf.random.stateless_normal(shape, seed=[1, 2]), dtype)


def seconds(function, x: tf.Tensor, repeats: int = 1) -> float:
    """Return the seconds of one call, the mean of some; none finds the outputs of the one before still alive."""
    start = time.perf_counter()
    for _ in range(repeats):
        outputs = None
        outputs = function(x)
    for output in outputs:  # a GPU computes behind Python's back: wait for it
        (output[:1, :1] if output.shape.rank else output).numpy()
    return (time.perf_counter() - start) / repeats


def interleaved(functions: dict, x: tf.Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each function in each round; quick ones are called until 20 ms have passed."""
    for function in functions.values():
        seconds(function, x)  # traces and compiles
    repeats = max(1, round(0.02 / max(seconds(function, x, repeats=2) for function in functions.values())))
    times = {name: [] for name in functions}
    for count in range(rounds):
        for name in turn(functions, count):
            times[name].append(seconds(functions[name], x, repeats))
    return times


def middle_ratio(times: dict, one: str, other: str) -> float:
    """Return the median of the rounds' quotients of two functions' times."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def turn(names, count: int) -> list:
    """Return the names in the order of a round: every other one is backwards."""
    return list(names)[:: -1 if count % 2 else 1]


def measure_machine() -> dict:
    """Return what the header says: versions, device, and the two rates that bound every penalty."""
    gpus = tf.config.list_physical_devices("GPU")
    x = normal((4096, 4096))
    product, copy = (min(seconds(f, x) for _ in range(8)) for f in (lambda x: [tf.matmul(x, x)], lambda x: [-x]))
    return {
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "tf_keras": tf_keras.__version__,
        "tfk_regularizers": tfk_regularizers.__version__,
        "device": tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "matmul_gflops": round(2 * 4096**3 / product / 1e9),
        "copy_gb_per_s": round(2 * 4 * 4096**2 / copy / 1e9, 1),
    }


def least_seconds(penalty: str, shape: tuple, gradient: bool, machine: dict) -> float:
    """Return the seconds that this machine needs at least; the module's docstring says what for."""
    if penalty == "Orthogonal":
        return (1.5 if gradient else 0.5) * 2 * shape[0] ** 2 * shape[1] / (machine["matmul_gflops"] * 1e9)
    return (3 if gradient else 1) * 4 * math.prod(shape) / (machine["copy_gb_per_s"] * 1e9)


# Each table: how many units of work there are, and a generator that yields the rows that each of them gives.


def speed(machine: dict, quick: bool):
    """Time each penalty on each shape in each mode."""
    shapes = QUICK_SHAPES if quick else SHAPES
    cases = [
        (penalty, *rest) for penalty in shapes for rest in itertools.product(shapes[penalty], (False, True), MODES)
    ]

    def work():
        for penalty, shape, gradient, mode in cases:
            functions = {side: as_function(make(side, penalty, 0.01), mode, gradient) for side in SIDES}
            functions["again"] = as_function(make("builtin", penalty, 0.01), mode, gradient)
            times = interleaved(functions, normal(shape), rounds=3 if quick else 9)
            row = {
                "penalty": penalty,
                "shape": shape,
                "mode": mode,
                "what": "value + gradient" if gradient else "value",
            }
            row |= {side: 1e3 * statistics.median(times[side]) for side in SIDES}
            row |= {"faster": middle_ratio(times, "builtin", "ours"), "same": middle_ratio(times, "builtin", "again")}
            yield [row | {"percent_of_limit": 1e5 * least_seconds(penalty, shape, gradient, machine) / row["ours"]}]

    return len(cases), work()


def memory(_: dict, quick: bool):
    """Measure the orthogonality penalty's peak memory and its first call."""
    shapes = [(2048, 2048), (4096, 4096), (2048, 8192), (8192, 128)]
    cases = [("peak, MB", shape, mode, list(SIDES)) for shape in shapes for mode in MODES]
    cases += [("peak, MB", (32768, 128), mode, ["ours"]) for mode in MODES]
    cases += [("first call, s", (16384, 128), "XLA", list(SIDES))]
    cases = [("peak, MB", (8192, 64), "graph", list(SIDES))] if quick else cases

    def work():
        for what, shape, mode, sides in cases:
            row = {"what": what, "shape": shape, "mode": mode}
            row |= {side: in_own_process(what, side, mode, *shape) for side in sides}
            yield [row | {"ratio": quotient(row.get("ours"), row.get("builtin"))}]

    return len(cases), work()


def step(_: dict, quick: bool):
    """Time the training steps of models that differ in nothing but their penalty, in turn."""
    fits = ["plain"] if quick else ["plain", "jit_compile=True"]
    cases = list(itertools.product(fits, ["L1L2"] if quick else BUILTIN))
    logger = getattr(tfk_regularizers, "PenaltyLogger", None)
    rounds = dict.fromkeys(BUILTIN, 3 if quick else 9) | {"Orthogonal": 4}  # takes long, and adds so much that 4 do

    def work():
        for fit, penalty in cases:
            logs = logger and (fit, penalty) == ("plain", "L2")
            models = {side: mlp(penalty, side, fit != "plain") for side in ("none", *SIDES, *["logged"] * bool(logs))}
            times = {side: [] for side in models}
            for count in range(rounds[penalty] + 1):  # one more for warming up
                for side in turn(models, count):
                    callbacks = [logger()] if side == "logged" else []
                    times[side].append(step_milliseconds(models[side], callbacks))
                yield []
            yield [
                {"fit": fit, **row} for row in step_rows(penalty, {side: np.array(t[1:]) for side, t in times.items()})
            ]
        if not quick:
            first = {side: in_own_process("first step, ms", side) for side in SIDES}
            ratio = {"ratio": quotient(first["ours"], first["builtin"])}
            yield [{"fit": "first step, 30 kernel shapes", "penalty": "L1L2"} | first | ratio]

    return sum(rounds[penalty] + 2 for _, penalty in cases) + (not quick), work()


def step_rows(penalty: str, times: dict):
    """Yield what a penalty costs, from the milliseconds of each model in each round."""
    medians = {side: float(np.median(times[side])) for side in times}
    adds = {f"{side}_adds": float(np.median(times[side] - times["none"])) for side in SIDES}
    yield {"penalty": penalty} | medians | adds | {"ratio": quotient(adds["ours_adds"], adds["builtin_adds"])}
    if "logged" in times:
        ratio = float(np.median(times["logged"] / times["ours"]))
        yield {"penalty": "L2, with PenaltyLogger", "ours": medians["logged"], "step_ratio": ratio}


def mlp(penalty: str, side: str, jit_compile: bool = False, widths=(2048,) * 5) -> tf_keras.Model:
    """Return a compiled MLP with every kernel under the penalty; the first width is that of its input."""
    tf_keras.utils.set_random_seed(0)
    regularizer = None if side == "none" else make("ours" if side == "logged" else side, penalty, 1e-4)
    model = tf_keras.Sequential([tf_keras.layers.Dense(n, "relu", kernel_regularizer=regularizer) for n in widths[1:]])
    model.build((None, widths[0]))
    model.compile(tf_keras.optimizers.SGD(1e-3), "mse", jit_compile=jit_compile or None)
    return model


def step_milliseconds(model: tf_keras.Model, callbacks: list) -> float:
    """Return the median time from one step of a short fit to the next; the first, which may trace, is left out."""
    ends = []
    clock = tf_keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    x = normal((128 * 6, 2048))
    model.fit(x, x, batch_size=128, shuffle=False, verbose=0, callbacks=[*callbacks, clock])
    return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(ends))


def error(_: dict, quick: bool):
    """Compare values to those that NumPy computes in float64; all factors are 1."""
    wide, tall = ((2000, 2000), (4096, 32)) if quick else ((8000, 8000), (16384, 32))
    cases = [(penalty, "float32", tall if penalty == "Orthogonal" else wide) for penalty in BUILTIN]
    cases += [(penalty, "float16", (1024, 1024)) for penalty in BUILTIN]

    def work():
        for penalty, dtype, shape in cases:
            x = normal(shape, dtype)
            right = exact(penalty, x.numpy())
            for mode in "graph", "XLA":
                with np.errstate(over="ignore"):  # the built-in's number of pairs is infinite in float16
                    values = {side: as_function(make(side, penalty, 1.0), mode, gradient=False)(x)[0] for side in SIDES}
                errors = {side: abs(float(value) / right - 1) for side, value in values.items()}
                yield [{"penalty": penalty, "dtype": dtype, "shape": shape, "mode": mode} | errors]

    return 2 * len(cases), work()


def by_hand(penalty: str, mode: str):
    """Return what people write in the place of a penalty."""
    if penalty == "SoftOrthogonal":
        return lambda x: 0.01 * tf.reduce_sum(tf.square(tf.matmul(x, x, transpose_b=True) - tf.eye(x.shape[0])))
    axis = 0 if mode == "columns" else 1
    return lambda x: 0.01 * tf.sqrt(tf.cast(tf.shape(x)[axis], x.dtype)) * tf.reduce_sum(tf.norm(x, axis=axis))


def product(x: tf.Tensor) -> tf.Tensor:
    """Return the matrix product that a million rows of 64 are measured beside."""
    return tf.matmul(x, x, transpose_a=True)


def soft_orthogonal():
    """Return the penalty that a million rows of 64 are measured with."""
    return tfk_regularizers.SoftOrthogonalRegularizer(0.01)


HAND = {"GroupLasso": tfk_regularizers.GroupLasso, "SoftOrthogonal": tfk_regularizers.SoftOrthogonalRegularizer}
MILLION = (1_000_000, 64)


def hand(_: dict, quick: bool):
    """Time the penalties that tf_keras lacks beside the lines that people write, and beside one matrix product."""
    groups = [("GroupLasso", of, (1000, 1000) if quick else (4000, 4000)) for of in ("columns", "rows")]
    squares = [("SoftOrthogonal", "rows", shape) for shape in ([(512, 512)] if quick else [(512, 4608), (4096, 512)])]
    cases = list(itertools.product(groups + squares, (False, True), MODES))
    products = [] if quick else list(MODES)

    def work():
        for (penalty, of, shape), gradient, mode in cases:
            functions = {
                "by_hand": as_function(by_hand(penalty, of), mode, gradient),
                "ours": as_function(HAND[penalty](0.01, of), mode, gradient),
                "again": as_function(by_hand(penalty, of), mode, gradient),
            }
            what = "value + gradient" if gradient else "value"
            yield [hand_row(f"{penalty}, {of}", shape, what, mode, functions, rounds=3 if quick else 9)]
        for mode in products:
            functions = {
                "by_hand": as_function(product, mode, gradient=False),
                "ours": as_function(soft_orthogonal(), mode, gradient=True),
                "again": as_function(product, mode, gradient=False),
            }
            row = hand_row("SoftOrthogonal, by one product", MILLION, "value + gradient", mode, functions, rounds=7)
            yield [row | {"peak": in_own_process("peak, MB", "soft", mode, *MILLION)}]

    return len(cases) + len(products), work()


def hand_row(penalty: str, shape: tuple, what: str, mode: str, functions: dict, *, rounds: int) -> dict:
    """Return a row of the table: medians, and the median of the rounds' quotients."""
    times = interleaved(functions, normal(shape), rounds)
    row = {"penalty": penalty, "shape": shape, "what": what, "mode": mode}
    row |= {side: 1e3 * statistics.median(times[side]) for side in ("by_hand", "ours")}
    return row | {"faster": middle_ratio(times, "by_hand", "ours"), "same": middle_ratio(times, "by_hand", "again")}


def exact(penalty: str, x: np.ndarray) -> float:
    """Return the penalty with all factors 1, by float64 arithmetic, a block of rows at a time."""
    if penalty == "Orthogonal":
        x = x.astype("float64")
        x /= np.sqrt(np.maximum(np.sum(x**2, axis=1, keepdims=True), 1e-12))
        total = sum(np.abs(x[start : start + 1024] @ x.T).sum() for start in range(0, len(x), 1024))
        return (total - np.sum(x**2)) / (len(x) * (len(x) - 1))
    totals = [sum(f(row.astype("float64")).sum() for row in x) for f in (np.abs, np.square)]
    return {"L1": totals[0], "L2": totals[1], "L1L2": sum(totals)}[penalty]


def in_own_process(*measurement) -> float | None:
    """Let a fresh Python process measure something; None if it failed, for want of memory for instance."""
    command = [sys.executable, __file__, "--child", *map(str, measurement)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode == 0:
        return float(process.stdout.split()[-1])
    last = (process.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"{measurement} failed with exit status {process.returncode}: {last}", file=sys.stderr)
    return None


def child(what: str, side: str, mode: str = "", *shape: str) -> float:
    """Measure what `in_own_process` asks for. Something small goes first: what is loaded once is nobody's cost."""
    if what == "first step, ms":
        for widths in (8, 8), range(728, 728 + 31 * 8, 8):  # 30 kernels of more than 2**19 elements, none like another
            model, x, y = mlp("L1L2", side, widths=widths), normal((32, widths[0])), normal((32, widths[-1]))
            start = time.perf_counter()
            model.train_on_batch(x, y)
        return 1e3 * (time.perf_counter() - start)
    regularizer = soft_orthogonal() if side == "soft" else make(side, "Orthogonal", 0.01)
    function = as_function(regularizer, mode, gradient=True)
    seconds(function, normal((64, 64)))
    x = normal([int(size) for size in shape])
    before = peak_bytes(reset=True)
    first = seconds(function, x)
    return first if what == "first call, s" else (peak_bytes() - before) / 1e6


def peak_bytes(reset: bool = False) -> int:
    """Return the peak of this process's memory, or of the GPU's; a reset lets it begin at what is in use now."""
    if tf.config.list_physical_devices("GPU"):
        if reset:
            tf.config.experimental.reset_memory_stats("GPU:0")
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError):  # Linux, where `ru_maxrss` begins with the peak of the process that started us
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def quotient(a: float | None, b: float | None) -> float | None:
    """Return a / b if both were measured."""
    return a / b if a is not None and b else None


# Each table: its function, its title; the keys of its columns, and what stands above them if not the key itself.
TABLES = {
    "speed": (speed, "Speed, ms: warm calls, medians of interleaved rounds"),
    "memory": (memory, "Orthogonal, value and gradient: peak memory beside the input, first call with compilation"),
    "step": (step, "Training step, ms: MLP of four 2048-unit Dense layers, batch 128, SGD"),
    "error": (error, "Relative error of the value against float64"),
    "hand": (hand, "What tf_keras lacks, ms: beside the lines that people write; peak beside input, in MB"),
}
# What the columns mean, for the Markdown file.
MEANINGS = {
    "speed": "Times faster than the built-in, and in brackets the percentage of what this machine can do at the rates "
    "above: for orthogonality of n rows of d elements 0.5 n² d multiply-adds for the value and 1.5 n² d with the "
    "gradient, for the others one pass over memory for the value and three with the gradient. What fits into a cache "
    "may beat that. Warm calls, medians of interleaved rounds.",
    "memory": "Of one value and gradient, each in a process of its own. Where a cell of the built-in is empty it was "
    "not measured, or memory did not suffice.",
    "step": "Milliseconds of a step without a penalty, with the built-in's and with ours; what the two add, as the "
    "median of the rounds' differences, and the quotient of what they add. With PenaltyLogger: the quotient of the "
    "steps with and without it. The last row is the first step of a model with 30 kernels of different shapes, "
    "compilation included.",
    "error": "Of values, in float32 and float16; inf is that the sum overflows.",
    "hand": "Milliseconds of the lines that people write and of this package's class, and the quotient. The last rows "
    "compare value and gradient of a million rows of 64 with one product `tf.matmul(x, x, transpose_a=True)`, and give "
    "the peak memory beside x.",
}
KEYS = {
    "speed": ["penalty", "shape", "what", "mode", "builtin", "ours", "faster", "percent_of_limit"],
    "memory": ["what", "shape", "mode", "builtin", "ours", "ratio"],
    "step": ["fit", "penalty", "none", "builtin", "ours", "builtin_adds", "ours_adds", "ratio", "step_ratio"],
    "error": ["penalty", "dtype", "shape", "mode", "builtin", "ours"],
    "hand": ["penalty", "shape", "what", "mode", "by_hand", "ours", "faster", "peak"],
}
HEADINGS = {"what": "", "faster": "times faster", "percent_of_limit": "% of the limit", "builtin": "built-in"}
HEADINGS |= {"builtin_adds": "built-in adds", "ours_adds": "ours adds", "ratio": "ours / built-in"}
HEADINGS |= {"by_hand": "by hand", "peak": "peak, MB", "none": "no penalty", "step_ratio": "with / without"}


def cell(value) -> str:
    """Return what a table shows for a text, a shape or a number."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, tuple):
        return " × ".join(map(str, value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def noise(rows: list[dict]) -> float | None:
    """Return the factor that 19 of 20 pairs of the same function stay below, None where there were no pairs."""
    pairs = [abs(math.log(row["same"])) for row in rows if "same" in row]
    return math.exp(np.quantile(pairs, 0.95)) if pairs else None


def noise_line(rows: list[dict]) -> str:
    """Return the sentence on the noise of a table, nothing where it has none."""
    factor = noise(rows)
    return "" if factor is None else f"~ is noise: the same function twice differs by up to {100 * factor - 100:.0f} %."


def marked(rows: list[dict]) -> list[dict]:
    """Return the rows with a mark at each quotient that is noise."""
    factor = noise(rows)
    if factor is None:
        return rows
    return [row | {"faster": "~" * (1 / factor <= row["faster"] <= factor) + cell(row["faster"])} for row in rows]


def laid_out(name: str, rows: list[dict]) -> tuple[str, list[list[str]]]:
    """Return the title of a table, and its headings and cells."""
    headings = [HEADINGS.get(key, key) for key in KEYS[name]]
    return TABLES[name][1], [headings, *([cell(row.get(key)) for key in KEYS[name]] for row in marked(rows))]


def side_by_side(rows: list[dict]) -> tuple[str, list[list[str]]]:
    """Return the first table with its modes beside each other."""
    table, keys = [["penalty", "shape", "", *MODES]], ("penalty", "shape", "what")
    for place, group in itertools.groupby(marked(rows), lambda row: [cell(row[key]) for key in keys]):
        table.append([*place, *(f"{row['faster']} ({row['percent_of_limit']:.0f} %)" for row in group)])
    return "Speed: times faster than the built-in", table


def headline(machine: dict) -> str:
    """Return the line that says where this was measured."""
    versions = ", ".join(f"{name} {machine[name]}" for name in list(machine)[:4])
    rates = f"matmul {machine['matmul_gflops']} GFLOP/s, copy {machine['copy_gb_per_s']} GB/s (float32, measured)"
    return f"{versions}; {machine['device']}, {machine['cores']} cores; {rates}"


def show(results: dict) -> None:
    """Print the tables."""
    console = Console()
    console.width = max(console.width, 180)  # piped into a file, a table keeps its shape
    console.print(headline(results["machine"]), highlight=False, soft_wrap=True)
    for name in list(results)[1:]:
        title, (headings, *rows) = laid_out(name, results[name])
        title += f"\n{noise_line(results[name])}".rstrip()
        table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        for heading in headings:
            is_text = heading in ("", "penalty", "shape", "mode", "dtype", "fit")
            table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print("", table)


def as_markdown(results: dict, picture: str | None) -> str:
    """Return a whole page: what made it and where, the picture if there is one, and each table with its meaning."""
    lines = ["# Benchmark: tfk_regularizers beside tf_keras's built-in regularizers", ""]
    lines += [f"Made by `{results['machine']['command']}`.", "", f"{headline(results['machine'])}."]
    if picture:
        lines += ["", f"![Times faster than the built-in, and what a penalty adds to a training step]({picture})"]
    for name in list(results)[1:]:
        title, table = side_by_side(results[name]) if name == "speed" else laid_out(name, results[name])
        table.insert(1, ["---"] * len(table[0]))
        meaning = f"{MEANINGS[name]} {noise_line(results[name])}".rstrip()
        lines += ["", f"## {title}", "", meaning, "", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join(lines) + "\n"


def draw(results: dict, file: Path) -> None:
    """Write the picture: above, how many times faster each penalty is; below, what each adds to a training step."""
    plt.switch_backend("Agg")  # writes files, needs no display
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    parts = [name for name in ("speed", "step") if name in results]
    if not parts:
        sys.exit("Nothing to draw: the picture shows the tables speed and step.")
    heights = [1.6 + {"speed": 0.065, "step": 0.3}[name] * len(results[name]) for name in parts]
    figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    places = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for name, place in zip(parts, places, strict=True):
        {"speed": draw_speed, "step": draw_step}[name](results[name], place)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def draw_speed(rows: list[dict], figure) -> None:
    """Draw a line from the built-in's speed to ours for each row, the value alone and with its gradient apart."""
    figure.suptitle("One call: times faster than tf_keras's built-in", fontsize=17, fontweight="bold")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    places = list(dict.fromkeys((row["penalty"], row["shape"]) for row in rows))
    heights = {place: index + 0.5 * list(BUILTIN).index(place[0]) for index, place in enumerate(places)}
    for axes, what in zip(panels, ("value", "value + gradient"), strict=True):
        for (mode, color), shift in zip(MODES.items(), (-0.26, 0, 0.26), strict=True):
            chosen = [row for row in rows if (row["what"], row["mode"]) == (what, mode)]
            y, x = [heights[row["penalty"], row["shape"]] + shift for row in chosen], [row["faster"] for row in chosen]
            axes.hlines(y, 1, x, color=color, alpha=0.4, linewidth=3.5)
            axes.scatter(x, y, color=color, s=36, label=mode, zorder=3)
        axes.set_title(what, fontsize=14)
        ratios = [1, *(row["faster"] for row in rows)]
        log_axis(axes, min(ratios) / 1.15, max(ratios) * 1.15, base=2, form="{}×")
        axes.margins(y=0.02)
        axes.axvline(1, color="black", linewidth=1.2)
    panels[0].set_yticks(list(heights.values()), [f"{penalty}   {cell(shape)}" for penalty, shape in heights])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def draw_step(rows: list[dict], figure) -> None:
    """Draw what each penalty adds to a step, the built-in's and ours."""
    rows = [row for row in rows if "builtin_adds" in row]
    y = range(len(rows))
    builtin, ours = ([max(row[key], 1) for row in rows] for key in ("builtin_adds", "ours_adds"))  # 0 has no place
    without = statistics.median(row["none"] for row in rows)
    figure.suptitle("What a penalty adds to a training step of a 4 × 2048 MLP", fontsize=17, fontweight="bold")
    axes = figure.subplots()
    axes.hlines(y, ours, builtin, color="#dedede", linewidth=6)
    axes.scatter(builtin, y, color=SIDE_COLORS["builtin"], marker="D", s=70, label="tf_keras's built-in", zorder=3)
    axes.scatter(ours, y, color=SIDE_COLORS["ours"], s=90, label="tfk_regularizers", zorder=3)
    for row, height, right in zip(rows, y, map(max, builtin, ours), strict=True):
        text = f"{cell(row['builtin_adds'])} → {cell(row['ours_adds'])} ms"
        axes.annotate(text, (right, height), (12, 0), textcoords="offset points", va="center")
    axes.set_yticks(y, [f"{row['penalty']}, {row['fit']}" for row in rows])
    axes.set_xlabel(f"milliseconds on top of a step of {without:.0f} ms without a penalty")
    log_axis(axes, 0.9, max(*builtin, *ours) * 6, base=10, form="{}")
    axes.margins(y=0.12)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def log_axis(axes, low: float, high: float, base: int, form: str) -> None:
    """Give an axis a logarithmic scale with powers of the base as ticks, and a grid."""
    ticks = [float(base) ** power for power in range(-6, 18) if low <= float(base) ** power <= high]
    axes.set_xscale("log", base=base)
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [form.format(f"{tick:g}") for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#e6e9ec")
    axes.tick_params(axis="y", length=0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure tfk_regularizers against tf_keras's built-in regularizers.")
    parser.add_argument("--quick", action="store_true", help="few shapes and few rounds: about a minute, and rough")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="only these (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--results", type=Path, metavar="FILE", help="measure nothing, take what --json has written")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw speed and step as a picture")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure behind a progress bar, then print and write."""
    arguments = parse_arguments()
    tf.get_logger().setLevel("ERROR")  # many shapes are many traces: the warning about retracing is not for us
    if arguments.child:
        print(child(*arguments.child))
        return
    if arguments.results:
        results = json.loads(arguments.results.read_text().replace('"inf"', "Infinity"))
        for row in itertools.chain(*(results[name] for name in results if name != "machine")):
            row |= {key: tuple(value) for key, value in row.items() if isinstance(value, list)}  # shapes
        write(results, arguments)
        return
    command = " ".join(["python examples/benchmark.py", *map(shlex.quote, sys.argv[1:])])
    results = {"machine": measure_machine() | {"command": command}}
    columns = TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in arguments.tables:
            total, work = TABLES[name][0](results["machine"], arguments.quick)
            results[name] = [row for rows in progress.track(work, total, description=name) for row in rows]
    write(results, arguments)


def write(results: dict, arguments: argparse.Namespace) -> None:
    """Print the tables, and write the files that are wanted."""
    show(results)
    if arguments.json:
        text = json.dumps(results, indent=1).replace(": Infinity", ': "inf"')  # JSON has no infinity
        arguments.json.write_text(text + "\n")
    if arguments.markdown:
        picture = arguments.plot and Path(os.path.relpath(arguments.plot, arguments.markdown.parent)).as_posix()
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(as_markdown(results, picture), encoding="utf-8")
    if arguments.plot:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
