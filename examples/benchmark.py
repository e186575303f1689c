"""Measure this package against Keras's built-in regularizers: training steps, first steps, memory, single calls.

Everything is measured side by side, the built-in and this package's in turn, and medians are shown. Six tables:

* ``fit``: what a penalty adds to a training step of ``Model.fit``, plain and with ``jit_compile=True``: an MLP of four
  2048-unit Dense layers, a ResNet50, two layers of a Transformer encoder of BERT's size, an embedding of a million
  rows, and an MLP of 30 kernel shapes. Batches are timed by a callback; the models without a penalty, with the
  built-in and with this package's take turns in one process. GroupLasso, which Keras lacks, stands beside its L1L2,
  and the sampled orthogonality beside its exact one.
* ``first``: seconds of the first step of the same models, its tracing and compilation included, and the peak memory of
  the steps after it beside the model itself. Each of them in a process of its own, several of them in turn.
* ``speed``: one call of each penalty on several shapes, eagerly, in a ``tf.function`` (graph) and in one compiled by
  XLA, the value alone and with its gradient. "% of the limit" compares with what this machine can do at all, measured
  at the start. For orthogonality that is the rate of a large matrix product: F = n² d multiply-adds make the Gram
  matrix of n rows, 0.5 F are needed for the value, 1.5 F with the gradient. For the others it is the rate of a large
  copy: the value reads the tensor once; the gradient reads it once more and writes one like it. What fits into a cache
  may beat that.
* ``memory``: peak memory that one value and gradient of the orthogonality penalty needs beside its input, and seconds
  of its first call under XLA, compilation included.
* ``error``: relative errors of the values against float64.
* ``hand``: the penalties that Keras lacks, beside the lines that people write for them, value and gradient and the
  value alone; and soft orthogonality of a million rows of 64 beside one matrix product, with its peak memory.

The Keras is tf_keras, or Keras 3 with ``--keras tf.keras``.

In ``speed`` and ``hand`` the same function is measured twice besides, in the same rounds. What 19 of 20 such pairs
differ by at most is the noise of the table. It stands below the title, and a ratio no farther from 1 has a ``~``. In
``fit`` the noise of a row is the half width of the 95 % interval of the difference between the two, and a ``~`` marks
two that differ by less.

Warm-up (tracing, compilation, first allocation) is never part of a time, but where the table says "first".
TensorFlow chooses the device: a GPU if there is one. Run it on an otherwise idle machine; it takes two hours
and 8 GB of memory, ``--quick`` two minutes and 2 GB. It needs ``pip install -e ".[examples]"``. The page
``benchmark.md`` has the results of two versions of TensorFlow, each measured in an environment of its own::

    python examples/benchmark.py --json 2.21.json
    python examples/benchmark.py --json 2.22.json
    python examples/benchmark.py --results 2.21.json 2.22.json --markdown examples/benchmark.md \\
        --plot examples/images/benchmark.png
    python examples/benchmark.py --quick --tables speed fit
    python examples/benchmark.py --tables fit first --models mlp resnet50
    python examples/benchmark.py --tables fit first --keras tf.keras
"""

import argparse
import collections
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

CLASSES = {"L1": "L1", "L2": "L2", "L1L2": "L1L2", "Orthogonal": "OrthogonalRegularizer"}
KERASES = {"tf_keras": tf_keras, "tf.keras": tf.keras}
BUILTINS = {  # before the next import
    name: {penalty: getattr(keras.regularizers, cls) for penalty, cls in CLASSES.items()}
    for name, keras in KERASES.items()
}

# isort: split
import tfk_regularizers  # noqa: E402

for message in (".* is the built-in regularizer of", "Built-in regularizers of"):  # on purpose
    warnings.filterwarnings("ignore", message=message)

keras = tf_keras  # another by `use`
SIDES = {
    "builtin": BUILTINS["tf_keras"],
    "ours": {penalty: getattr(tfk_regularizers, cls) for penalty, cls in CLASSES.items()},
}
# Their colours in the picture, where each stands for one thing.
MODES = {"eager": "#8d99ae", "graph": "#2a6f97", "XLA": "#e07a1f"}
SIDE_COLORS = {"builtin": "#7b4fa3", "ours": "#2e8b57"}
SHAPES = {penalty: [(64, 64), (300, 300), (1000, 1000), (4096, 4096), (8000, 8000)] for penalty in ("L1", "L2", "L1L2")}
SHAPES["Orthogonal"] = [(64, 64), (512, 512), (512, 4608), (1024, 256), (2048, 2048), (4096, 512), (8192, 64)]
QUICK_SHAPES = {penalty: [(300, 300), (2000, 2000)] for penalty in ("L1", "L2", "L1L2")}
QUICK_SHAPES["Orthogonal"] = [(512, 512), (4096, 64)]


def use(name: str) -> None:
    """Measure with the Keras of this name."""
    global keras
    keras, SIDES["builtin"] = KERASES[name], BUILTINS[name]


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
        **{next(name for name in KERASES if KERASES[name] is keras): keras.__version__},
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


def speed(machine: dict, quick: bool, _):
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


def memory(_: dict, quick: bool, __):
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


Case = collections.namedtuple("Case", "title build penalties rounds processes")


def mlp(penalty: str, side: str, widths=(2048,) * 5, batch: int = 128):
    """Return an MLP with every kernel under the penalty, and a batch; the first width is that of its input."""
    regularizer = made(side, penalty)
    model = keras.Sequential([keras.layers.Dense(n, "relu", kernel_regularizer=regularizer) for n in widths[1:]])
    model.build((None, widths[0]))
    return model, normal((batch, widths[0])), normal((batch, widths[-1]))


def thirty_shapes(penalty: str, side: str):
    """Return an MLP of 30 kernels of half a million elements and more, none of the shape of another."""
    return mlp(penalty, side, range(728, 728 + 31 * 8, 8), 32)


def resnet50(penalty: str, side: str):
    """Return a ResNet50 with a penalty on the kernels of all convolutions and of the head, and 16 images."""
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    if side != "none":
        tfk_regularizers.set_regularizers(model, kernel_regularizer=made(side, penalty))
    return model, normal((16, 64, 64, 3)), tf.one_hot(tf.range(16) % 10, 10)


def encoder(penalty: str, side: str, width: int = 768):
    """Return two layers of a Transformer encoder of BERT's size, and 4 sequences of 128 vectors.

    Attention has kernels of three axes, for which the built-in orthogonality fails: that is put on the others alone.
    """
    layers, regularizer = keras.layers, made(side, penalty)
    of_attention = None if "Orthogonal" in penalty else regularizer
    x = inputs = keras.Input((128, width))
    for _ in range(2):
        attended = layers.MultiHeadAttention(width // 64, 64, kernel_regularizer=of_attention)(x, x)
        x = layers.LayerNormalization()(x + attended)
        hidden = layers.Dense(4 * width, "gelu", kernel_regularizer=regularizer)(x)
        x = layers.LayerNormalization()(x + layers.Dense(width, kernel_regularizer=regularizer)(hidden))
    return keras.Model(inputs, x), normal((4, 128, width)), normal((4, 128, width))


def embedding(penalty: str, side: str):
    """Return an embedding of a million rows of 64 under the penalty, and 32 texts of 16 tokens."""
    table = keras.layers.Embedding(1_000_000, 64, embeddings_regularizer=made(side, penalty))
    layers = [table, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    tokens = tf.random.stateless_uniform((32, 16), [1, 2], maxval=1_000_000, dtype=tf.int32)
    model(tokens)
    return model, tokens, normal((32, 1))


SUMS = ["L1", "L2", "L1L2"]
MODELS = {
    "mlp": Case("MLP 4 × 2048", mlp, [*SUMS, "GroupLasso", "Orthogonal", "Sampled"], 15, 3),
    "resnet50": Case("ResNet50", resnet50, SUMS, 5, 3),
    "encoder": Case("encoder, 2 layers", encoder, [*SUMS, "Orthogonal"], 15, 3),
    "embedding": Case("embedding 1000000 × 64", embedding, SUMS, 15, 3),
    "shapes": Case("MLP, 30 shapes", thirty_shapes, [*SUMS, "GroupLasso", "Orthogonal"], 15, 3),
}
STUDENT = {3: 4.303, 5: 2.776, 15: 2.145}  # quantiles of Student's distribution for so many rounds
FITS = {"plain": None, "jit_compile": True}
INSTEAD = {"GroupLasso": "L1L2", "Sampled": "Orthogonal"}  # what stands in the built-in's place, where it has no such


def made(side: str, penalty: str):
    """Return the regularizer of a model: none, the built-in's or ours."""
    if side == "none":
        return None
    if side == "builtin":
        return make(side, INSTEAD.get(penalty, penalty), 1e-5)
    if penalty == "Sampled":
        return tfk_regularizers.SampledOrthogonalRegularizer(1e-5, sample_size=256)
    return tfk_regularizers.GroupLasso(1e-5) if penalty == "GroupLasso" else make(side, penalty, 1e-5)


def named(penalty: str) -> str:
    """Return a penalty's name, with that of the built-in it stands beside where Keras lacks it."""
    return f"{penalty} (built-in: {INSTEAD[penalty]})" if penalty in INSTEAD else penalty


def training(model: str, fit: str, penalty: str, side: str):
    """Return a function that trains for some batches and returns the time at the start and at the end of each."""
    keras.utils.set_random_seed(0)
    trained, x, y = MODELS[model].build(penalty, side)
    trained.compile(keras.optimizers.SGD(1e-4), "mse", jit_compile=FITS[fit])
    options = tf.data.Options()
    options.autotune.enabled = False  # or the end of a fit waits for the thread that tunes, up to seconds
    data = tf.data.Dataset.from_tensors((x, y)).repeat().with_options(options)

    def train(batches: int) -> list[float]:
        times = [time.perf_counter()]
        tick = {"on_train_batch_end": lambda batch, logs: times.append(time.perf_counter())}
        clock = keras.callbacks.LambdaCallback(**tick)
        trained.fit(data, steps_per_epoch=batches, verbose=0, callbacks=[clock], shuffle=False)
        return times

    return train


def step_milliseconds(train) -> float:
    """Return the median time of a few steps; the first, which may trace, is left out."""
    return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(train(5)[1:]))


def fit(_: dict, quick: bool, models):
    """Time the training steps of models that differ in nothing but their penalty, in turn."""
    cases = [(model, how) for model in models[: 1 if quick else None] for how in (["plain"] if quick else FITS)]
    rounds = {model: 3 if quick else MODELS[model].rounds for model in models}

    def work():
        for model, how in cases:
            penalties = SUMS if quick else MODELS[model].penalties
            keys = [("none", ""), *((side, penalty) for penalty in penalties for side in SIDES)]
            fits, same = {}, {}  # GroupLasso and L1L2 have one built-in
            for side, penalty in keys:
                key = side, INSTEAD.get(penalty, penalty) if side == "builtin" else penalty
                if key not in fits:
                    fits[key] = training(model, how, penalty, side)
                    fits[key](3)  # traces, compiles and allocates
                same[side, penalty] = key
            times = {key: [] for key in fits}
            for count in range(rounds[model]):
                for key in turn(fits, count):
                    if "Orthogonal" not in key[1] or count < 3:  # takes long, and adds so much that 3 do
                        times[key].append(step_milliseconds(fits[key]))
                yield []
            yield [
                fit_row(model, how, penalty, {s: times[same[s, penalty]] for s in SIDES}, times["none", ""])
                for penalty in penalties
            ]

    return sum(rounds[model] + 1 for model, _ in cases), work()


def fit_row(model: str, how: str, penalty: str, times: dict, none: list) -> dict:
    """Return what a penalty adds, from the milliseconds of a step in each round."""
    count = min(map(len, times.values()))
    builtin, ours, without = (np.array(t[:count]) for t in (times["builtin"], times["ours"], none))
    adds = [float(np.median(t - without)) for t in (builtin, ours)]
    # Of a mean of so few differences that 19 of 20 lie within; a median is wider by 1.25.
    noise = STUDENT[count] * 1.2533 * float(np.std(ours - builtin, ddof=1)) / math.sqrt(count)
    return {
        "model": MODELS[model].title,
        "fit": how,
        "penalty": named(penalty),
        "none": float(np.median(none)),
        "builtin_adds": adds[0],
        "ours_adds": adds[1],
        "ratio": quotient(adds[1], adds[0]) if adds[0] > noise else None,
        "noise": noise,
        "differs": abs(float(np.median(ours - builtin))) > noise,
    }


def first(_: dict, quick: bool, models):
    """Measure first steps, and the peak memory of those after, in turn and each in a process of its own."""
    cases = [
        (model, how, penalty)
        for model in models[: 1 if quick else None]
        for how in (["plain"] if quick else FITS)
        for penalty in (["L1L2"] if quick else MODELS[model].penalties)
        if how == "plain" or penalty in ("L1L2", "Orthogonal")  # the others compile as long
    ]

    def work():
        for model, how, penalty in cases:
            found = {side: [] for side in SIDES}
            for count in range(MODELS[model].processes if how == "plain" else 1):
                for side in turn(SIDES, count):
                    found[side].append(in_own_process("first step", side, model, how, penalty))
            row = {"model": MODELS[model].title, "fit": how, "penalty": named(penalty)}
            for index, what in enumerate(("first", "peak")):
                done = {side: [each[index] for each in found[side] if each is not None] for side in SIDES}
                middle = {side: statistics.median(done[side]) if done[side] else None for side in SIDES}
                row |= {f"{what}_{side}": value for side, value in middle.items()}
                row[f"{what}_ratio"] = quotient(middle["ours"], middle["builtin"])
            yield [row]

    return len(cases), work()


def error(_: dict, quick: bool, __):
    """Compare values to those that NumPy computes in float64; all factors are 1."""
    wide, tall = ((2000, 2000), (4096, 32)) if quick else ((8000, 8000), (16384, 32))
    cases = [(penalty, "float32", tall if penalty == "Orthogonal" else wide) for penalty in CLASSES]
    cases += [(penalty, "float16", (1024, 1024)) for penalty in CLASSES]

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


def hand(_: dict, quick: bool, __):
    """Time the penalties that Keras lacks beside the lines that people write, and beside one matrix product."""
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


def in_own_process(*measurement):
    """Let a fresh Python process measure a number or two; None if it failed, for want of memory for instance."""
    name = next(name for name in KERASES if KERASES[name] is keras)
    command = [sys.executable, __file__, "--keras", name, "--child", *map(str, measurement)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last = (process.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"{measurement} failed with exit status {process.returncode}: {last}", file=sys.stderr)
    return None


def child(what: str, side: str, *rest: str):
    """Measure what `in_own_process` asks for. Something small goes first: what is loaded once is nobody's cost."""
    if what == "first step":
        return first_step(side, *rest)
    mode, *shape = rest
    regularizer = soft_orthogonal() if side == "soft" else make(side, "Orthogonal", 0.01)
    function = as_function(regularizer, mode, gradient=True)
    seconds(function, normal((64, 64)))
    x = normal([int(size) for size in shape])
    before = peak_bytes(reset=True)
    seconds_of_first = seconds(function, x)
    return seconds_of_first if what == "first call, s" else (peak_bytes() - before) / 1e6


def first_step(side: str, model: str, how: str, penalty: str) -> list[float]:
    """Return the seconds of the first step, and the peak memory in MB of the next ones beside what was there before."""
    small, x, y = mlp("L2", "none", (8, 8), 8)
    small.compile(keras.optimizers.SGD(), "mse", jit_compile=FITS[how])
    small.fit(x, y, verbose=0)
    train = training(model, how, penalty, side)
    before = peak_bytes(reset=True)
    start, end = train(1)
    peak_bytes(reset=True)  # without what the compiler has given back
    train(3)
    return [end - start, (peak_bytes() - before) / 1e6]


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
    "fit": (fit, "What a penalty adds to a training step of `fit`, ms"),
    "first": (first, "First step, s, and peak memory of a step beside the model, MB"),
    "speed": (speed, "One call, ms: warm calls, medians of interleaved rounds"),
    "memory": (memory, "Orthogonal, value and gradient: peak memory beside the input, first call with compilation"),
    "error": (error, "Relative error of the value against float64"),
    "hand": (hand, "What Keras lacks, ms: beside the lines that people write; peak beside input, in MB"),
}
# What the columns mean, for the Markdown file.
MEANINGS = {
    "fit": "Milliseconds of a step without a penalty, and what the built-in's and ours add to it: medians over rounds "
    "of the differences. Noise is the half width of the 95 % interval of the difference between the two. ~ marks two "
    "that differ by less, and there is no quotient where the built-in adds less.",
    "first": "Seconds of the first step, tracing and compilation included, and the peak memory of the steps after it "
    "beside what the process held before training. Medians of three processes in turn; one for the embedding and under "
    "`jit_compile=True`.",
    "speed": "Times faster than the built-in, and in brackets the percentage of what this machine can do at the rates "
    "above: for orthogonality of n rows of d elements 0.5 n² d multiply-adds for the value and 1.5 n² d with the "
    "gradient, for the others one pass over memory for the value and three with the gradient. What fits into a cache "
    "may beat that. Warm calls, medians of interleaved rounds.",
    "memory": "Of one value and gradient, each in a process of its own. Where a cell of the built-in is empty it was "
    "not measured, or memory did not suffice.",
    "error": "Of values, in float32 and float16; inf is that the sum overflows.",
    "hand": "Milliseconds of the lines that people write and of this package's class, and the quotient. The last rows "
    "compare value and gradient of a million rows of 64 with one product `tf.matmul(x, x, transpose_a=True)`, and give "
    "the peak memory beside x.",
}
FIRST = [f"{what}_{which}" for what in ("first", "peak") for which in (*SIDES, "ratio")]
KEYS = {
    "fit": ["model", "fit", "penalty", "none", "builtin_adds", "ours_adds", "ratio", "noise"],
    "first": ["model", "fit", "penalty", *FIRST],
    "speed": ["penalty", "shape", "what", "mode", "builtin", "ours", "faster", "percent_of_limit"],
    "memory": ["what", "shape", "mode", "builtin", "ours", "ratio"],
    "error": ["penalty", "dtype", "shape", "mode", "builtin", "ours"],
    "hand": ["penalty", "shape", "what", "mode", "by_hand", "ours", "faster", "peak"],
}
HEADINGS = {"what": "", "faster": "times faster", "percent_of_limit": "% of the limit", "builtin": "built-in"}
HEADINGS |= {"builtin_adds": "built-in adds", "ours_adds": "ours adds", "ratio": "ours / built-in"}
HEADINGS |= {"by_hand": "by hand", "peak": "peak, MB", "none": "no penalty"}
HEADINGS |= {"first_builtin": "first step: built-in", "first_ours": "ours", "first_ratio": "ours / built-in"}
HEADINGS |= {"peak_builtin": "peak: built-in", "peak_ours": "ours", "peak_ratio": "ours / built-in"}


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
    if "noise" in rows[0]:
        return [row | {"ratio": "~" * (not row["differs"]) + cell(row["ratio"])} for row in rows]
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
            is_text = heading in ("", "penalty", "shape", "mode", "dtype", "fit", "model")
            table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print("", table)


def as_markdown(several: list[dict], picture: str | None) -> str:
    """Return a whole page: the picture if there is one, then for each run what made it and where, and its tables."""
    lines = ["# Benchmark: tfk_regularizers beside Keras's built-in regularizers", ""]
    if picture:
        lines += [f"![What a penalty adds to a training step, and one call beside the built-in's]({picture})", ""]
    tables = dict.fromkeys(name for results in several for name in results if name != "machine")
    lines += [f"* {headline(results['machine'])}; by `{results['machine']['command']}`." for results in several]
    for name in tables:
        lines += ["", f"## {TABLES[name][1]}", "", MEANINGS[name]]
        for results in several:
            if name in results:
                _, table = side_by_side(results[name]) if name == "speed" else laid_out(name, results[name])
                table.insert(1, ["---"] * len(table[0]))
                version = f"**TensorFlow {results['machine']['TensorFlow']}**. {noise_line(results[name])}".rstrip()
                lines += ["", version, "", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join(lines) + "\n"


def draw(results: dict, file: Path) -> None:
    """Write the picture: above, what each penalty adds to a training step; below, how many times faster one call is."""
    plt.switch_backend("Agg")  # writes files, needs no display
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    parts = [name for name in ("fit", "speed") if name in results]
    if not parts:
        sys.exit("Nothing to draw: the picture shows the tables fit and speed.")
    heights = [1.6 + {"speed": 0.065, "fit": 0.3}[name] * len(results[name]) for name in parts]
    figure = plt.figure(figsize=(11, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    places = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for name, place in zip(parts, places, strict=True):
        {"speed": draw_speed, "fit": draw_fit}[name](results[name], place, results["machine"]["TensorFlow"])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def draw_speed(rows: list[dict], figure, version: str) -> None:
    """Draw a line from the built-in's speed to ours for each row, the value alone and with its gradient apart."""
    figure.suptitle(
        f"One call: times faster than Keras's built-in, TensorFlow {version}", fontsize=17, fontweight="bold"
    )
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    places = list(dict.fromkeys((row["penalty"], row["shape"]) for row in rows))
    heights = {place: index + 0.5 * list(CLASSES).index(place[0]) for index, place in enumerate(places)}
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


def draw_fit(rows: list[dict], figure, version: str) -> None:
    """Draw what each penalty adds to a step, the built-in's and ours."""
    y = range(len(rows))
    builtin, ours = ([max(row[key], 0.5) for row in rows] for key in ("builtin_adds", "ours_adds"))  # 0 has no place
    figure.suptitle(f"What a penalty adds to a training step, TensorFlow {version}", fontsize=17, fontweight="bold")
    axes = figure.subplots()
    axes.hlines(y, ours, builtin, color="#dedede", linewidth=6)
    axes.scatter(builtin, y, color=SIDE_COLORS["builtin"], marker="D", s=70, label="Keras's built-in", zorder=3)
    axes.scatter(ours, y, color=SIDE_COLORS["ours"], s=90, label="tfk_regularizers", zorder=3)
    for row, height, right in zip(rows, y, map(max, builtin, ours), strict=True):
        text = f"{cell(row['builtin_adds'])} → {cell(row['ours_adds'])} of {cell(row['none'])}"
        axes.annotate(text, (right, height), (12, 0), textcoords="offset points", va="center", fontsize=11)
    axes.set_yticks(y, [f"{row['model']}, {row['fit']}: {row['penalty']}" for row in rows], fontsize=11)
    axes.set_xlabel("milliseconds added, at least 0.5; beside the points: built-in → ours, of a step without a penalty")
    log_axis(axes, 0.4, max(*builtin, *ours) * 8, base=10, form="{}")
    axes.set_ylim(len(rows) - 0.4, -0.6)
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
    parser = argparse.ArgumentParser(description="Measure tfk_regularizers against Keras's built-in regularizers.")
    parser.add_argument("--quick", action="store_true", help="few shapes and few rounds: two minutes, and rough")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="only these (default: all)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="of the tables fit and first")
    parser.add_argument("--keras", choices=KERASES, default="tf_keras", help="the Keras of the models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument(
        "--results", type=Path, nargs="+", metavar="FILE", help="measure nothing, take what --json has written"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw fit and speed as a picture")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure behind a progress bar, then print and write."""
    arguments = parse_arguments()
    use(arguments.keras)
    tf.get_logger().setLevel("ERROR")  # many shapes are many traces: the warning about retracing is not for us
    if arguments.child:
        print(json.dumps(child(*arguments.child)))
        return
    if arguments.results:
        write(merged([loaded(file) for file in arguments.results]), arguments)
        return
    command = " ".join(["python examples/benchmark.py", *map(shlex.quote, sys.argv[1:])])
    results = {"machine": measure_machine() | {"command": command}}
    columns = TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in arguments.tables:
            total, work = TABLES[name][0](results["machine"], arguments.quick, arguments.models)
            results[name] = [row for rows in progress.track(work, total, description=name) for row in rows]
            if arguments.json:
                save(results, arguments.json)
    write([results], arguments)


def save(results: dict, file: Path) -> None:
    """Write what is measured so far as JSON, which has no infinity."""
    file.write_text(json.dumps(results, indent=1).replace(": Infinity", ': "inf"') + "\n")


def loaded(file: Path) -> dict:
    """Return what `--json` has written."""
    results = json.loads(file.read_text().replace('"inf"', "Infinity"))
    for row in itertools.chain(*(results[name] for name in results if name != "machine")):
        row |= {key: tuple(value) for key, value in row.items() if isinstance(value, list)}  # shapes
    return results


def merged(several: list[dict]) -> list[dict]:
    """Return the results of each version of TensorFlow in one, with all rows and the commands that made them."""
    versions: dict[str, dict] = {}
    for results in several:
        one = versions.setdefault(results["machine"]["TensorFlow"], {"machine": results["machine"] | {"command": ""}})
        commands = [command for command in one["machine"]["command"].split("`, `") if command]
        commands = dict.fromkeys([*commands, results["machine"]["command"]])
        one["machine"] = one["machine"] | {"command": "`, `".join(commands)}
        for name, rows in results.items():
            if name != "machine":
                one[name] = one.get(name, []) + rows
    return list(versions.values())


def write(several: list[dict], arguments: argparse.Namespace) -> None:
    """Print the tables, and write the files that are wanted; the picture is of the first results."""
    for results in several:
        show(results)
    if arguments.markdown:
        picture = arguments.plot and Path(os.path.relpath(arguments.plot, arguments.markdown.parent)).as_posix()
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(as_markdown(several, picture), encoding="utf-8")
    if arguments.plot:
        draw(several[0], arguments.plot)


if __name__ == "__main__":
    main()
