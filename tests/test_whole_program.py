"""Programs in separate processes: with deterministic operations, and with TensorFlow 1 graphs."""

import json
import pathlib
import sys

import pytest
from oracles import PENALTIES

pytestmark = pytest.mark.heavy

DETERMINISTIC = """
import json, sys
import tf_keras
before = set(sys.modules)
import tfk_regularizers as tfk
result = {"imported": sorted(set(sys.modules) - before)}

import tensorflow as tf
sys.path.insert(0, TESTS)
from differentiation import MODES, run, value_and_gradient
from oracles import PENALTIES
from tfk_regularizers._penalties import execution

tf.config.experimental.enable_op_determinism()
execution.XLA_CLUSTER_IN_GRAPH_FROM = 2**18
penalties = {name: make for name, (make, _) in PENALTIES.items()}
for axis in ("rows", "columns"):
    penalties[f"sampled {axis}"] = lambda m, axis=axis: m.SampledOrthogonalRegularizer(0.3, axis, sample_size=50)

def bits(mode, penalty, x):
    tf.random.set_seed(7)
    return [tf.convert_to_tensor(part).numpy().tobytes() for part in run(mode, value_and_gradient(penalty), x)]

for shape in ([64, 48], [1100, 300], [300, 1100], [1300, 300]):  # one block, halves and a loop over blocks
    x = tf.random.stateless_normal(shape, [1, 2])
    for mode in MODES:
        for name, make in penalties.items():
            if mode != "xla" or "sampled" not in name:
                result[f"{mode} {shape} {name}"] = bits(mode, make(tfk), x) == bits(mode, make(tfk), x)
print(json.dumps(result))
"""


def run_program(run_python, program, **settings):
    settings["TESTS"] = str(pathlib.Path(__file__).parent)
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    return json.loads(run_python("-c", "\n".join([*lines, program])))


def test_deterministic_runs_are_equal_bit_by_bit_and_the_import_adds_no_other_package(run_python):
    result = run_program(run_python, DETERMINISTIC)
    # A second name of a loaded module, and modules that export the regularizers of the loaded Keras.
    exports = ("tensorflow.keras", "tensorflow.keras.regularizers", "keras._tf_keras.keras.regularizers")
    imported = set(result.pop("imported")) - {"tf_keras.regularizers.__init__", *exports}
    assert "tfk_regularizers" in imported
    assert {name.partition(".")[0] for name in imported} - {"tfk_regularizers"} <= sys.stdlib_module_names
    assert len(result) == 3 * 4 * len(PENALTIES) + 2 * 4 * 2
    assert [name for name, equal in result.items() if not equal] == []


GRAPHS = """
import json, pytest, sys
import numpy as np
import tensorflow as tf
v1 = tf.compat.v1
if IMPORTED_BEFORE:
    import tfk_regularizers
v1.disable_v2_behavior()
import tfk_regularizers as tfk
import tf_keras
sys.path.insert(0, TESTS)
import oracles

assert not tf.executing_eagerly()
result, session, random = {}, v1.Session(), np.random.default_rng(0)

def difference(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())

penalties = dict(oracles.PENALTIES)
penalties["sampled"] = (lambda m: m.SampledOrthogonalRegularizer(0.3, sample_size=1100), penalties["rows"][1])
for shape in ((37, 23), (1100, 300)):
    numbers = random.standard_normal(shape)
    for name, (make, oracle) in penalties.items():
        for known in (True, False):
            x = v1.placeholder(tf.float64, shape if known else None)
            value = make(tfk)(x)
            pairs = zip(session.run([value, v1.gradients(value, x)[0]], {x: numbers}), oracle(numbers))
            result[f"{name} {shape} {known}"] = max(difference(a, b) for a, b in pairs)

layer = tf_keras.layers.Dense(4, kernel_regularizer="l1_l2", bias_regularizer="l2", bias_initializer="ones")
other = tf_keras.layers.Dense(2, kernel_regularizer="orthogonal_regularizer")
other(layer(v1.placeholder(tf.float32, (None, 3))))
session.run(v1.global_variables_initializer())
*losses, kernel, second = session.run([*layer.losses, *other.losses, layer.kernel, other.kernel])
expected = [oracles.l1_l2(kernel, 0.01, 0.01)[0], 0.04, oracles.orthogonal(second, 0.01, "rows")[0]]
result["layers"] = difference(losses, np.array(expected))

model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer="l2", kernel_initializer="ones")])
model.compile(tf_keras.optimizers.legacy.SGD(0.1), "mse")
loss = model.fit(np.zeros((4, 3)), np.zeros((4, 2)), epochs=2, verbose=0).history["loss"]
result["fit"] = difference(loss, np.array([0.06, 0.06 * 0.998**2]))

# A variable factor can be shown at any time, and its number once Keras's session has initialized it.
variable = tf.Variable(0.125, trainable=False, use_resource=True)
regularizer = tfk.L2(variable)
assert repr(regularizer) == "L2(l2=<a variable of shape (), dtype float32, trainable=False>)"
tf_keras.backend.set_value(variable, 0.125)
assert repr(regularizer) == "L2(l2=<variable: 0.125>)"
result["variable"] = difference(regularizer.get_config()["l2"], np.array(0.125))

for function, arguments in ((tfk.log_penalties, {}), (tfk.set_regularizers, {"kernel_regularizer": "l1"})):
    with pytest.raises(RuntimeError, match=f"`{function.__name__}` needs TensorFlow 2"):
        function(model, **arguments)
print(json.dumps(result))
"""


@pytest.mark.parametrize("before", [True, False], ids=["imported before", "imported after"])
def test_tensorflow_1_graphs(run_python, before):
    """Values, gradients, losses of layers and a training differ little from the oracle."""
    result = run_program(run_python, GRAPHS, IMPORTED_BEFORE=before)
    assert len(result) == 2 * 2 * (len(PENALTIES) + 1) + 3
    assert {name: difference for name, difference in result.items() if not difference < 1e-6} == {}
