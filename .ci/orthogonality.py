"""Compare time, peak memory and error of the orthogonality penalty with tf_keras's built-in.

    python .ci/orthogonality.py                                   measure the default shapes on this machine
    python .ci/orthogonality.py 1536x1536 --what product          measure the Hessian-vector product of another shape
    python .ci/orthogonality.py --blocks max_rows=1024            use other blocks than `execution` does
    python .ci/orthogonality.py --export FOLDER                   write programs for the compilers of a GPU and a TPU

These figures determined how the penalty is implemented. Times are medians over rounds in which the two take
turns; the ratio is the median of the ratios in each round. Memory is the peak of the first call in a new process,
without the input. `--export` writes value and gradient as StableHLO, lowered as for a GPU. Their temporary memory,
kernels and cycles are known only to the compilers of these devices, which this script does not run. The script needs
the extra `examples`, because it measures with `examples/benchmark.py`.
"""

import argparse
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import benchmark  # keeps the built-in regularizers before the package replaces them
import numpy as np
import tensorflow as tf

from tfk_regularizers._penalties import execution

SHAPES = (
    "1024x256 1100x4000 2048x2048 4096x4096 2048x8192 8192x1024 1100x20000 4096x512 512x4608 8192x64 16384x256 65536x64"
)
MOST_FOR_BUILTIN = 16384  # rows; with more, its Gram matrices do not fit into 24 GB


def product(regularizer):
    """Return a function that maps x to a list with the Hessian times a vector, which is x shifted by a row."""

    def function(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = regularizer(x)
            gradient = tape.gradient(value, x)
        return [outer.gradient(gradient, x, output_gradients=tf.roll(x, 1, 0))]

    return function


def as_function(side, what, mode):
    """Return the function to measure, which maps a tensor to a list of tensors."""
    regularizer = benchmark.make(side, "Orthogonal", 1.0)
    if what != "product":
        return benchmark.as_function(regularizer, mode, gradient=what == "gradient")
    function = product(regularizer)
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "XLA" or None, autograph=False)


def measure(shape, what, mode, rounds):
    """Print one line: the milliseconds of both, their ratio, the peak memory of both, and the errors of ours."""
    sides = ["builtin", "ours"] if shape[0] <= MOST_FOR_BUILTIN else ["ours"]
    x = benchmark.normal(shape)
    functions = {side: as_function(side, what, mode) for side in sides}
    times = benchmark.interleaved(functions, x, rounds)
    cells = [f"{1e3 * statistics.median(times[side]):9.1f} ms" for side in sides]
    if len(sides) == 2:
        ratio = statistics.median(a / b for a, b in zip(times["builtin"], times["ours"], strict=True))
        cells.append(f"{ratio:5.2f} times faster")
    if what == "gradient":
        peaks = [benchmark.in_own_process("peak, MB", side, mode, *shape) for side in sides]
        cells += [f"{peak:8.0f} MB" if peak else "  no memory" for peak in peaks]
        value, gradient = (np.asarray(output, "float64") for output in functions["ours"](x))
        right, direction = truth(x.numpy().astype("float64"))
        errors = abs(value / right - 1), np.linalg.norm(gradient - direction) / np.linalg.norm(direction)
        cells.append("errors of ours " + " ".join(f"{error:.0e}" for error in errors))
    print(f"{'x'.join(map(str, shape)):>12} {what:9} {mode:6}", *cells, flush=True)


def truth(x, block=512):
    """Return value and gradient in float64, computed a block of rows at a time."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    u, pairs = x / lengths, len(x) * (len(x) - 1)
    by_u = np.concatenate([np.sign(u[i : i + block] @ u.T) @ u for i in range(0, len(u), block)]) - u
    along = np.sum(u * by_u, axis=1, keepdims=True)
    return along.sum() / pairs, 2 / pairs * (by_u - along * u) / lengths


def on_gpu(function):
    """Return the function with its operations placed on a GPU."""

    def placed(x):
        with tf.device("GPU:0"):
            return function(x)

    return placed


def export(folder, shapes, dtypes=("float32", "bfloat16")):
    """Write value and gradient of both as StableHLO, computed in blocks as on an accelerator."""
    folder.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        for side in benchmark.SIDES:
            compiled = tf.function(on_gpu(as_function(side, "gradient", "eager")), jit_compile=True, autograph=False)
            for dtype in dtypes:
                name = f"{side}-OrthogonalRegularizer-{'x'.join(map(str, shape))}-{dtype}.stablehlo"
                compiler = compiled.experimental_get_compiler_ir(tf.TensorSpec(shape, dtype))
                (folder / name).write_bytes(compiler(stage="stablehlo_serialized", platform_name="GPU"))
                print(folder / name, flush=True)


def main():
    """Read the command line, then measure or export."""
    parser = argparse.ArgumentParser(description="Compare the orthogonality penalty with tf_keras's built-in.")
    parser.add_argument("shapes", nargs="*", default=SHAPES.split(), help="shapes to measure, such as 4096x512")
    parser.add_argument("--what", nargs="+", choices=("value", "gradient", "product"), default=["value", "gradient"])
    parser.add_argument("--modes", nargs="+", choices=("eager", "graph", "XLA"), default=["graph", "XLA"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", default="", help="settings of the blocks on a CPU, such as max_rows=1024")
    parser.add_argument("--export", type=pathlib.Path, metavar="FOLDER", help="write programs instead of measuring")
    arguments = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes]
    fields = dict(field.split("=") for field in arguments.blocks.split(",") if field)
    chosen = {name: type(getattr(execution._ON_CPU, name))(value) for name, value in fields.items()}
    execution._ON_CPU = execution._ON_CPU._replace(**chosen)
    if arguments.export:
        export(arguments.export, shapes)
        return
    for shape in shapes:
        for what in arguments.what:
            for mode in arguments.modes:
                measure(shape, what, mode, arguments.rounds)


if __name__ == "__main__":
    main()
