"""Compare this package with Keras's built-in regularizers: training steps, first steps, memory and single calls.

The built-in regularizers and those of this package are measured in turn, and medians are shown. There are six tables:

* ``fit``: the time that a penalty adds to a training step of ``Model.fit``, plain and with ``jit_compile=True``. The
  models are an MLP of four 2048-unit Dense layers, a ResNet50, two layers of a Transformer encoder of BERT's size, an
  embedding of a million rows, and an MLP with 30 kernel shapes. A callback times the batches; models without a penalty,
  with the built-in and with this package's take turns in one process. GroupLasso, which Keras lacks, is compared with
  the built-in L1L2, and the sampled orthogonality with the built-in, exact one.
* ``first``: seconds of the first step of the same models, including tracing and compilation, and the peak memory of the
  steps after it, without the model itself. Each measurement runs in a new process; several of them take turns.
* ``speed``: one call of each penalty on several shapes, eagerly, in a ``tf.function`` (graph) and in one compiled by
  XLA, without and with the gradient. "% of the limit" is the share of what this machine can do, which is measured at
  the start. For orthogonality this is the rate of a large matrix product: the Gram matrix of n rows takes F = n² d
  multiply-adds, the value needs 0.5 F, and value and gradient need 1.5 F. For the others it is the rate of a large
  copy: the value reads the tensor once; the gradient reads it once more and writes one like it. Tensors that fit into a
  cache may exceed the limit.
* ``memory``: peak memory of one value and gradient of the orthogonality penalty without its input, and seconds of its
  first call under XLA, including compilation.
* ``error``: relative errors of the values, compared with float64.
* ``hand``: the penalties that Keras lacks, compared with hand-written code, without and with the gradient; and soft
  orthogonality of a million rows of 64, compared with one matrix product, with its peak memory.

The models are of tf_keras, or of Keras 3 with ``--keras tf.keras``.

For ``speed`` and ``hand``, one function is measured twice in the same rounds. The noise of the table is the difference
that 19 of 20 such pairs do not exceed. It is shown below the title, and a ``~`` marks ratios within it.
In ``fit`` the noise of a row is half the width of the 95 % interval of the difference between the two, and a ``~``
marks differences that are not larger.

Times do not include warm-up (tracing, compilation, first allocation), except where the table says "first". TensorFlow
chooses the device: a GPU if there is one. Run the script on an otherwise idle machine; it takes two hours and 8 GB of
memory, or two minutes and 2 GB with ``--quick``. It needs ``pip install -e ".[examples]"``. The page ``benchmark.md``
shows results for two versions of TensorFlow, each measured in its own environment::

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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's C++ code reads this when it is imported

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
BUILTINS = {  # kept before the next import replaces them
    name: {penalty: getattr(keras.regularizers, cls) for penalty, cls in CLASSES.items()}
    for name, keras in KERASES.items()
}

# isort: split
import tfk_regularizers  # noqa: E402

for message in (".* is the built-in regularizer of", "There are built-in regularizers of"):  # they are used on purpose
    warnings.filterwarnings("ignore", message=message)

keras = tf_keras  # changed by `use`
SIDES = {
    "builtin": BUILTINS["tf_keras"],
    "ours": {penalty: getattr(tfk_regularizers, cls) for penalty, cls in CLASSES.items()},
}
# Colors in the picture, where each has one meaning.
MODES = {"eager": "#8d99ae", "graph": "#2a6f97", "XLA": "#e07a1f"}
SIDE_COLORS = {"builtin": "#7b4fa3", "ours": "#2e8b57"}
SHAPES = {penalty: [(64, 64), (300, 300), (1000, 1000), (4096, 4096), (8000, 8000)] for penalty in ("L1", "L2", "L1L2")}
SHAPES["Orthogonal"] = [(64, 64), (512, 512), (512, 4608), (1024, 256), (2048, 2048), (4096, 512), (8192, 64)]
QUICK_SHAPES = {penalty: [(300, 300), (2000, 2000)] for penalty in ("L1", "L2", "L1L2")}
QUICK_SHAPES["Orthogonal"] = [(512, 512), (4096, 64)]


def use(name: str) -> None:
    """Use the Keras of this name for the measurements."""
    global keras
    keras, SIDES["builtin"] = KERASES[name], BUILTINS[name]


def make(side: str, penalty: str, factor: float):
    """Return the built-in regularizer or ours, with the same value for all its factors."""
    return SIDES[side][penalty](*[factor] * (2 if penalty == "L1L2" else 1))


def as_function(regularizer, mode: str, gradient: bool):
    """Return the function to measure, which maps a tensor to [value] or [value, gradient]."""

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
    """Return the mean seconds of a call; the outputs of each call are deleted before the next one."""
    start = time.perf_counter()
    for _ in range(repeats):
        outputs = None
        outputs = function(x)
    for output in outputs:  # a GPU computes asynchronously: wait for it
        (output[:1, :1] if output.shape.rank else output).numpy()
    return (time.perf_counter() - start) / repeats


def interleaved(functions: dict, x: tf.Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each function in each round; in a round, fast ones are called for about 20 ms."""
    for function in functions.values():
        seconds(function, x)  # trace and compile
    repeats = max(1, round(0.02 / max(seconds(function, x, repeats=2) for function in functions.values())))
    times = {name: [] for name in functions}
    for count in range(rounds):
        for name in turn(functions, count):
            times[name].append(seconds(functions[name], x, repeats))
    return times


def middle_ratio(times: dict, one: str, other: str) -> float:
    """Return the median over the rounds of the ratio of two functions' times."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def turn(names, count: int) -> list:
    """Return the names in the order of a round; every other round is reversed."""
    return list(names)[:: -1 if count % 2 else 1]


def measure_machine() -> dict:
    """Return the contents of the header: versions, device, and the two rates that limit every penalty."""
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
    """Return the minimum seconds on this machine; the docstring of the module explains what it counts."""
    if penalty == "Orthogonal":
        return (1.5 if gradient else 0.5) * 2 * shape[0] ** 2 * shape[1] / (machine["matmul_gflops"] * 1e9)
    return (3 if gradient else 1) * 4 * math.prod(shape) / (machine["copy_gb_per_s"] * 1e9)


# The function of each table returns the number of units of work, and a generator that yields the rows of each unit.


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
    """Measure the peak memory and the first call of the orthogonality penalty."""
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
    """Return an MLP with the penalty on every kernel, and a batch; the first width is the width of the input."""
    regularizer = made(side, penalty)
    model = keras.Sequential([keras.layers.Dense(n, "relu", kernel_regularizer=regularizer) for n in widths[1:]])
    model.build((None, widths[0]))
    return model, normal((batch, widths[0])), normal((batch, widths[-1]))


def thirty_shapes(penalty: str, side: str):
    """Return an MLP with 30 kernels of different shapes, each of half a million elements or more."""
    return mlp(penalty, side, range(728, 728 + 31 * 8, 8), 32)


def resnet50(penalty: str, side: str):
    """Return a ResNet50 with a penalty on the kernels of all convolutions and of the head, and 16 images."""
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    if side != "none":
        tfk_regularizers.set_regularizers(model, kernel_regularizer=made(side, penalty))
    return model, normal((16, 64, 64, 3)), tf.one_hot(tf.range(16) % 10, 10)


def encoder(penalty: str, side: str, width: int = 768):
    """Return two layers of a Transformer encoder of BERT's size, and 4 sequences of 128 vectors.

    Attention has kernels with three axes, for which the built-in orthogonality fails: only the other kernels have it.
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
    """Return an embedding of a million rows of 64 with the penalty, and 32 texts of 16 tokens."""
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
STUDENT = {3: 4.303, 5: 2.776, 15: 2.145}  # quantiles of Student's t-distribution by number of rounds
FITS = {"plain": None, "jit_compile": True}
INSTEAD = {"GroupLasso": "L1L2", "Sampled": "Orthogonal"}  # the built-in to compare with, if Keras lacks the penalty


def made(side: str, penalty: str):
    """Return the regularizer of a model: None, the built-in or ours."""
    if side == "none":
        return None
    if side == "builtin":
        return make(side, INSTEAD.get(penalty, penalty), 1e-5)
    if penalty == "Sampled":
        return tfk_regularizers.SampledOrthogonalRegularizer(1e-5, sample_size=256)
    return tfk_regularizers.GroupLasso(1e-5) if penalty == "GroupLasso" else make(side, penalty, 1e-5)


def named(penalty: str) -> str:
    """Return the name of a penalty; if Keras lacks it, add the built-in that it is compared with."""
    return f"{penalty} (built-in: {INSTEAD[penalty]})" if penalty in INSTEAD else penalty


def training(model: str, fit: str, penalty: str, side: str):
    """Return a function that trains for some batches and returns the time at the start and at the end of each."""
    keras.utils.set_random_seed(0)
    trained, x, y = MODELS[model].build(penalty, side)
    trained.compile(keras.optimizers.SGD(1e-4), "mse", jit_compile=FITS[fit])
    options = tf.data.Options()
    options.autotune.enabled = False  # otherwise the end of `fit` waits for the tuning thread, for up to seconds
    data = tf.data.Dataset.from_tensors((x, y)).repeat().with_options(options)

    def train(batches: int) -> list[float]:
        times = [time.perf_counter()]
        tick = {"on_train_batch_end": lambda batch, logs: times.append(time.perf_counter())}
        clock = keras.callbacks.LambdaCallback(**tick)
        trained.fit(data, steps_per_epoch=batches, verbose=0, callbacks=[clock], shuffle=False)
        return times

    return train


def step_milliseconds(train) -> float:
    """Return the median time of a few steps, without the first one, which may trace."""
    return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(train(5)[1:]))


def fit(_: dict, quick: bool, models):
    """Time the training steps of models that differ only in their penalty, in turn."""
    cases = [(model, how) for model in models[: 1 if quick else None] for how in (["plain"] if quick else FITS)]
    rounds = {model: 3 if quick else MODELS[model].rounds for model in models}

    def work():
        for model, how in cases:
            penalties = SUMS if quick else MODELS[model].penalties
            keys = [("none", ""), *((side, penalty) for penalty in penalties for side in SIDES)]
            fits, same = {}, {}  # GroupLasso and L1L2 share a built-in
            for side, penalty in keys:
                key = side, INSTEAD.get(penalty, penalty) if side == "builtin" else penalty
                if key not in fits:
                    fits[key] = training(model, how, penalty, side)
                    fits[key](3)  # trace, compile and allocate
                same[side, penalty] = key
            times = {key: [] for key in fits}
            for count in range(rounds[model]):
                for key in turn(fits, count):
                    if "Orthogonal" not in key[1] or count < 3:  # it takes long, and 3 rounds are enough
                        times[key].append(step_milliseconds(fits[key]))
                yield []
            yield [
                fit_row(model, how, penalty, {s: times[same[s, penalty]] for s in SIDES}, times["none", ""])
                for penalty in penalties
            ]

    return sum(rounds[model] + 1 for model, _ in cases), work()


def fit_row(model: str, how: str, penalty: str, times: dict, none: list) -> dict:
    """Return the time that a penalty adds, from the milliseconds of a step in each round."""
    count = min(map(len, times.values()))
    builtin, ours, without = (np.array(t[:count]) for t in (times["builtin"], times["ours"], none))
    adds = [float(np.median(t - without)) for t in (builtin, ours)]
    # This is half the 95 % interval of a mean of so few differences; for a median it is 1.25 times as wide.
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
    """Measure first steps, and the peak memory of the steps after them, in turn and each in a new process."""
    cases = [
        (model, how, penalty)
        for model in models[: 1 if quick else None]
        for how in (["plain"] if quick else FITS)
        for penalty in (["L1L2"] if quick else MODELS[model].penalties)
        if how == "plain" or penalty in ("L1L2", "Orthogonal")  # the others take as long to compile
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
    """Compare the values with those that NumPy computes in float64; all factors are 1."""
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
    """Return hand-written code for a penalty."""
    if penalty == "SoftOrthogonal":
        return lambda x: 0.01 * tf.reduce_sum(tf.square(tf.matmul(x, x, transpose_b=True) - tf.eye(x.shape[0])))
    axis = 0 if mode == "columns" else 1
    return lambda x: 0.01 * tf.sqrt(tf.cast(tf.shape(x)[axis], x.dtype)) * tf.reduce_sum(tf.norm(x, axis=axis))


def product(x: tf.Tensor) -> tf.Tensor:
    """Return the matrix product that soft orthogonality of a million rows of 64 is compared with."""
    return tf.matmul(x, x, transpose_a=True)


def soft_orthogonal():
    """Return the penalty for a million rows of 64."""
    return tfk_regularizers.SoftOrthogonalRegularizer(0.01)


HAND = {"GroupLasso": tfk_regularizers.GroupLasso, "SoftOrthogonal": tfk_regularizers.SoftOrthogonalRegularizer}
MILLION = (1_000_000, 64)


def hand(_: dict, quick: bool, __):
    """Time the penalties that Keras lacks, compared with hand-written code and with one matrix product."""
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
            row = hand_row("SoftOrthogonal vs. one product", MILLION, "value + gradient", mode, functions, rounds=7)
            yield [row | {"peak": in_own_process("peak, MB", "soft", mode, *MILLION)}]

    return len(cases) + len(products), work()


def hand_row(penalty: str, shape: tuple, what: str, mode: str, functions: dict, *, rounds: int) -> dict:
    """Return a row of the table: median times, and the medians of the ratios in each round."""
    times = interleaved(functions, normal(shape), rounds)
    row = {"penalty": penalty, "shape": shape, "what": what, "mode": mode}
    row |= {side: 1e3 * statistics.median(times[side]) for side in ("by_hand", "ours")}
    return row | {"faster": middle_ratio(times, "by_hand", "ours"), "same": middle_ratio(times, "by_hand", "again")}


def exact(penalty: str, x: np.ndarray) -> float:
    """Return the penalty with all factors 1, computed in float64, a block of rows at a time."""
    if penalty == "Orthogonal":
        x = x.astype("float64")
        x /= np.sqrt(np.maximum(np.sum(x**2, axis=1, keepdims=True), 1e-12))
        total = sum(np.abs(x[start : start + 1024] @ x.T).sum() for start in range(0, len(x), 1024))
        return (total - np.sum(x**2)) / (len(x) * (len(x) - 1))
    totals = [sum(f(row.astype("float64")).sum() for row in x) for f in (np.abs, np.square)]
    return {"L1": totals[0], "L2": totals[1], "L1L2": sum(totals)}[penalty]


def in_own_process(*measurement):
    """Return the measurement of a new Python process, or None if it fails, for example for lack of memory."""
    name = next(name for name in KERASES if KERASES[name] is keras)
    command = [sys.executable, __file__, "--keras", name, "--child", *map(str, measurement)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last = (process.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"{measurement} failed with exit status {process.returncode}: {last}", file=sys.stderr)
    return None


def child(what: str, side: str, *rest: str):
    """Measure what `in_own_process` asks for, after a small call that keeps one-time loading out of the figure."""
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
    """Return the seconds of the first step, and the peak memory in MB that the next ones add."""
    small, x, y = mlp("L2", "none", (8, 8), 8)
    small.compile(keras.optimizers.SGD(), "mse", jit_compile=FITS[how])
    small.fit(x, y, verbose=0)
    train = training(model, how, penalty, side)
    before = peak_bytes(reset=True)
    start, end = train(1)
    peak_bytes(reset=True)  # without the memory that the compiler has freed
    train(3)
    return [end - start, (peak_bytes() - before) / 1e6]


def peak_bytes(reset: bool = False) -> int:
    """Return the peak memory of this process or of the GPU; a reset lowers it to the memory in use."""
    if tf.config.list_physical_devices("GPU"):
        if reset:
            tf.config.experimental.reset_memory_stats("GPU:0")
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError):  # on Linux, `ru_maxrss` starts with the peak of the parent process
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def quotient(a: float | None, b: float | None) -> float | None:
    """Return a / b if both were measured."""
    return a / b if a is not None and b else None


# TABLES has the function and title of each table, KEYS its columns, and HEADINGS the headings that differ from a key.
TABLES = {
    "fit": (fit, "Time that a penalty adds to a training step of `fit`, ms"),
    "first": (first, "First step, s, and peak memory of later steps without the model, MB"),
    "speed": (speed, "One call, ms: warm calls, medians of interleaved rounds"),
    "memory": (memory, "Orthogonal, value and gradient: peak memory without the input, first call with compilation"),
    "error": (error, "Relative error of the value against float64"),
    "hand": (hand, "Penalties that Keras lacks vs. hand-written code, ms; peak memory without the input, MB"),
}
# Explanations of the tables, for the Markdown file.
MEANINGS = {
    "fit": "The table shows the milliseconds of a step without a penalty, and the time that the built-in penalty and "
    "ours add to it, as medians over the rounds. The noise is half the width of the 95 % interval of the difference "
    "between the two. ~ marks differences that are not larger than the noise, and the ratio is left out if the "
    "built-in adds no more than the noise.",
    "first": "The table shows the seconds of the first step, including tracing and compilation, and the peak memory of "
    "the steps after it, without the memory that the process used before training. The figures are medians of three "
    "processes that take turns. There is only one process for the embedding and for `jit_compile=True`.",
    "speed": "The table shows how many times faster than the built-in a call is, and in parentheses the percentage of "
    "what this machine can do at the rates above. Orthogonality of n rows of d elements takes 0.5 n² d multiply-adds "
    "for the value and 1.5 n² d with the gradient; the others take one pass over memory for the value and three with "
    "the gradient. Tensors that fit into a cache may exceed the limit. Calls are warm; figures are medians of "
    "interleaved rounds.",
    "memory": "The figures are for one value and gradient, each in a new process. If a cell of the built-in is empty, "
    "it was not measured or memory was not sufficient.",
    "error": "The errors are of values in float32 and float16; inf means that the sum overflows.",
    "hand": "The table shows the milliseconds of hand-written code and of this package's class, and their ratio. The "
    "last rows compare value and gradient of a million rows of 64 with one product "
    "`tf.matmul(x, x, transpose_a=True)`, and show the peak memory without x.",
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
HEADINGS |= {"builtin_adds": "added: built-in", "ours_adds": "ours", "ratio": "ours / built-in"}
HEADINGS |= {"by_hand": "by hand", "peak": "peak, MB", "none": "no penalty"}
HEADINGS |= {"first_builtin": "first step: built-in", "first_ours": "ours", "first_ratio": "ours / built-in"}
HEADINGS |= {"peak_builtin": "peak: built-in", "peak_ours": "ours", "peak_ratio": "ours / built-in"}


def cell(value) -> str:
    """Return the text of a cell that contains a text, a shape or a number."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, tuple):
        return " × ".join(map(str, value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def noise(rows: list[dict]) -> float | None:
    """Return the factor that 19 of 20 pairs of the same function do not exceed, or None without pairs."""
    pairs = [abs(math.log(row["same"])) for row in rows if "same" in row]
    return math.exp(np.quantile(pairs, 0.95)) if pairs else None


def noise_line(rows: list[dict]) -> str:
    """Return a sentence about the noise of a table, or an empty string if it was not measured."""
    factor = noise(rows)
    return "" if factor is None else f"~ marks noise: repeats of a function differ by up to {100 * factor - 100:.0f} %."


def marked(rows: list[dict]) -> list[dict]:
    """Return the rows, with a mark at each ratio that is noise."""
    if "noise" in rows[0]:
        return [row | {"ratio": "~" * (not row["differs"]) + cell(row["ratio"])} for row in rows]
    factor = noise(rows)
    if factor is None:
        return rows
    return [row | {"faster": "~" * (1 / factor <= row["faster"] <= factor) + cell(row["faster"])} for row in rows]


def laid_out(name: str, rows: list[dict]) -> tuple[str, list[list[str]]]:
    """Return the title, the headings and the cells of a table."""
    headings = [HEADINGS.get(key, key) for key in KEYS[name]]
    return TABLES[name][1], [headings, *([cell(row.get(key)) for key in KEYS[name]] for row in marked(rows))]


def side_by_side(rows: list[dict]) -> tuple[str, list[list[str]]]:
    """Return the table `speed` with its modes side by side."""
    table, keys = [["penalty", "shape", "", *MODES]], ("penalty", "shape", "what")
    for place, group in itertools.groupby(marked(rows), lambda row: [cell(row[key]) for key in keys]):
        table.append([*place, *(f"{row['faster']} ({row['percent_of_limit']:.0f} %)" for row in group)])
    return "Speed: times faster than the built-in", table


def headline(machine: dict) -> str:
    """Return a line about the versions and the machine of the measurements."""
    versions = ", ".join(f"{name} {machine[name]}" for name in list(machine)[:4])
    rates = f"matmul {machine['matmul_gflops']} GFLOP/s, copy {machine['copy_gb_per_s']} GB/s (float32, measured)"
    return f"{versions}; {machine['device']}, {machine['cores']} cores; {rates}"


def show(results: dict) -> None:
    """Print the tables."""
    console = Console()
    console.width = max(console.width, 180)  # keep the shape of a table when piped into a file
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
    """Return a whole page: the picture, if any, a line for each run with its machine and command, and the tables."""
    lines = ["# Benchmark: tfk_regularizers and Keras's built-in regularizers", ""]
    if picture:
        lines += [f"![Times of Keras's built-in regularizers and of tfk_regularizers]({picture})", ""]
    tables = dict.fromkeys(name for results in several for name in results if name != "machine")
    lines += [f"* {headline(results['machine'])}; run as `{results['machine']['command']}`." for results in several]
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
    """Draw the time that each penalty adds to a training step, and below it how many times faster one call is."""
    plt.switch_backend("Agg")  # write files without a display
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
    """Draw a line from the built-in's speed to ours for each row, in one panel without and one with the gradient."""
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
    """Draw the time that each penalty adds to a step, for the built-in and for ours."""
    y = range(len(rows))
    builtin, ours = ([max(row[key], 0.5) for row in rows] for key in ("builtin_adds", "ours_adds"))  # the axis has no 0
    figure.suptitle(
        f"Time that a penalty adds to a training step, TensorFlow {version}", fontsize=17, fontweight="bold"
    )
    axes = figure.subplots()
    axes.hlines(y, ours, builtin, color="#dedede", linewidth=6)
    axes.scatter(builtin, y, color=SIDE_COLORS["builtin"], marker="D", s=70, label="Keras's built-in", zorder=3)
    axes.scatter(ours, y, color=SIDE_COLORS["ours"], s=90, label="tfk_regularizers", zorder=3)
    for row, height, right in zip(rows, y, map(max, builtin, ours), strict=True):
        text = f"{cell(row['builtin_adds'])} → {cell(row['ours_adds'])} of {cell(row['none'])}"
        axes.annotate(text, (right, height), (12, 0), textcoords="offset points", va="center", fontsize=11)
    axes.set_yticks(y, [f"{row['model']}, {row['fit']}: {row['penalty']}" for row in rows], fontsize=11)
    axes.set_xlabel("milliseconds added (at least 0.5)\nlabels: built-in → ours, of a step without a penalty")
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
    parser = argparse.ArgumentParser(description="Compare tfk_regularizers with Keras's built-in regularizers.")
    parser.add_argument("--quick", action="store_true", help="use few shapes and rounds: rough figures in two minutes")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables (default: all)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models for fit and first")
    parser.add_argument("--keras", choices=KERASES, default="tf_keras", help="Keras to use (default: tf_keras)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument(
        "--results", type=Path, nargs="+", metavar="FILE", help="show what --json has written instead of measuring"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the tables fit and speed")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure with a progress bar, then print and write the results."""
    arguments = parse_arguments()
    use(arguments.keras)
    tf.get_logger().setLevel("ERROR")  # many shapes need many traces: the warning about retracing does not apply
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
    """Write the results so far as JSON, which has no infinity."""
    file.write_text(json.dumps(results, indent=1).replace(": Infinity", ': "inf"') + "\n")


def loaded(file: Path) -> dict:
    """Return the results that `--json` has written."""
    results = json.loads(file.read_text().replace('"inf"', "Infinity"))
    for row in itertools.chain(*(results[name] for name in results if name != "machine")):
        row |= {key: tuple(value) for key, value in row.items() if isinstance(value, list)}  # shapes
    return results


def merged(several: list[dict]) -> list[dict]:
    """Return one result for each version of TensorFlow, with all rows and the commands that measured them."""
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
    """Print the tables, and write the files that are asked for; the picture shows the first results."""
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
