"""Training on replicas, workers, parameter servers and DTensor meshes gives the same weights as on one device.

`pytest -q -s -m heavy tests/test_distribution.py` prints the largest difference of any weight for each of them.
"""

import concurrent.futures
import json
import pathlib
import socket

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from oracles import PENALTIES
from tensorflow.python.distribute import sharded_variable

import tfk_regularizers as tfk
from tfk_regularizers._penalties.shards import gather_rows

pytestmark = pytest.mark.heavy

ORACLES = PENALTIES | {
    "sampled": (lambda m: m.SampledOrthogonalRegularizer(0.3, sample_size=100), PENALTIES["rows"][1]),
    "sum": (
        lambda m: m.OrthogonalRegularizer(0.3) + m.SoftOrthogonalRegularizer(1e-4),
        lambda x: map(sum, zip(PENALTIES["rows"][1](x), PENALTIES["soft rows"][1](x), strict=True)),
    ),
}

# A few roundings of float32 (6e-8): the weights are about 1, and 12 steps add gradients in different orders.
TOLERANCE = 1e-6

# A program that trains two models. One has a branch for each penalty, with an embedding, a convolution and a dense
# layer; the other is smaller, and its L1 is scheduled. `force_tiles_and_compilation` makes it compute orthogonality in
# tiles of at most 3 rows, and compile sums of any size.
MODEL = """
import json, os, sys
import numpy as np
import tensorflow as tf
import tf_keras
import tfk_regularizers as tfk
from tfk_regularizers._penalties import execution, orthogonal
from tfk_regularizers._penalties.reductions import size

used = set()  # how penalties were computed

def noted(function, name=None):
    def call(*arguments, **keywords):
        result = function(*arguments, **keywords)
        used.add(name or result.name)
        return result

    return call

def force_tiles_and_compilation():
    execution.SINGLE_GRAM_UP_TO, execution.block_count = 0, lambda x, with_gradient: size(x, 0) // 6 * 2 + 1
    orthogonal._product = noted(orthogonal._product, "tiled")
    execution.XLA_CLUSTER_IN_GRAPH_FROM = 1
    execution.choose_kernel = noted(execution.choose_kernel)

REGULARIZERS = {
    "l1": tfk.L1(0.01),
    "l2": tfk.L2(0.02),
    "l1_l2": tfk.L1L2(0.01, 0.02),
    "rows": tfk.OrthogonalRegularizer(0.5),
    "columns": tfk.OrthogonalRegularizer(0.5, "columns"),
    "sampled": tfk.SampledOrthogonalRegularizer(0.5, sample_size=100),
    "group": tfk.GroupLasso(0.02),
    "soft": tfk.SoftOrthogonalRegularizer(0.001),
    "sum": tfk.OrthogonalRegularizer(0.5, "columns") + tfk.SoftOrthogonalRegularizer(0.001, diagonal=False),
}
TOKENS, PARTS, BATCH, STEPS = 23, 4, 16, 12
random = np.random.default_rng(0)
x = random.integers(0, TOKENS, (BATCH * STEPS, PARTS))
y = random.standard_normal((BATCH * STEPS, 4 * len(REGULARIZERS))).astype("float32")

def weights_of(model):
    names = ("embeddings", "kernel", "bias")
    layers = [layer for layer in model.layers if layer.weights]
    return {f"{layer.name}/{name}": getattr(layer, name) for layer in layers for name in names if hasattr(layer, name)}

def whole(weight):
    return tf.concat(weight.variables, 0) if hasattr(weight, "variables") else weight

def build(regularizers=REGULARIZERS, activity=None):
    layers, tokens = tf_keras.layers, tf_keras.Input([PARTS])
    outputs = []
    for name, regularizer in regularizers.items():
        h = layers.Embedding(TOKENS, 6, embeddings_regularizer=regularizer, name=f"{name}_embedding")(tokens)
        h = layers.Conv1D(5, 2, activation="tanh", kernel_regularizer=regularizer, name=f"{name}_conv")(h)
        h = layers.Flatten(name=f"{name}_flatten")(h)
        penalties = {"kernel_regularizer": regularizer, "activity_regularizer": activity}
        outputs.append(layers.Dense(4, name=f"{name}_dense", **penalties)(h))
    model = tf_keras.Model(tokens, layers.Concatenate()(outputs))
    model.compile(tf_keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)  # otherwise the step is traced twice, because it creates these
    random = np.random.default_rng(1)
    for weight in weights_of(model).values():
        weight.assign(0.5 * random.standard_normal(weight.shape).astype("float32"))
    return model

def train(model, epochs=1, callbacks=()):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y[:, :model.output_shape[1]])).batch(BATCH, drop_remainder=True)
    arguments = {"epochs": epochs, "steps_per_epoch": STEPS // epochs, "callbacks": list(callbacks), "verbose": 0}
    history = model.fit(data.repeat().with_options(options), **arguments).history
    weights = {name: whole(weight).numpy().tolist() for name, weight in weights_of(model).items()}
    return {"history": history, "weights": weights, "used": sorted(used)}

def train_both():
    first, l1 = train(build()), tfk.L1(9.0)
    model = build({"shared": l1, "sum": l1 + tfk.L2(0.1)}, activity=tfk.L1(9.0))
    tfk.log_penalties(model)
    scheduler = tfk.RegularizationScheduler(lambda epoch: [0.125, 0.0, 0.03125][epoch], "l1")
    return [first, train(model, 3, [scheduler])], model

def virtual_cpus(number):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * number)
    return [f"CPU:{i}" for i in range(number)]
"""

ONE_DEVICE = """
plain, _ = train_both()
force_tiles_and_compilation()
print(json.dumps([plain, train(build())]))
"""

REPLICAS = """
replicas = int(sys.argv[1])
in_processes = "TF_CONFIG" in os.environ
mirrored = tf.distribute.MirroredStrategy
strategy = tf.distribute.MultiWorkerMirroredStrategy() if in_processes else mirrored(virtual_cpus(replicas))
assert strategy.num_replicas_in_sync == replicas
force_tiles_and_compilation()
with strategy.scope():
    results, scheduled = train_both()
if not in_processes:
    scheduled.save(sys.argv[2])
print(json.dumps(results))
"""

# One worker and two parameter servers run in this process; all strategies of a process need the same cluster.
PARAMETER_SERVERS = """
worker, *parameter_servers = (f"127.0.0.1:{port}" for port in sys.argv[1:])
for penalty in (tfk.OrthogonalRegularizer(), tfk.L1(), tfk.L2(), tfk.L1L2(1, 1)):
    penalty(tf.ones([2048, 2048]))  # eager calls must not interfere with later calls on the worker
cluster = tf.train.ClusterSpec({"worker": [worker], "ps": parameter_servers})
tasks = [("worker", 0), *(("ps", index) for index in range(len(parameter_servers)))]
servers = [tf.distribute.Server(cluster, job_name=job, task_index=index, protocol="grpc") for job, index in tasks]
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
force_tiles_and_compilation()

trained = {}
for shards in (1, 2, 3):
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(shards) if shards > 1 else None
    with tf.distribute.ParameterServerStrategy(resolver, partitioner).scope():
        trained[shards], model = train_both()
    for weight in weights_of(model).values():
        assert shards == 1 or len(weight.variables) == min(shards, weight.shape[0])
with tf.device("/job:worker/replica:0/task:0/device:CPU:0"):
    assert float(tfk.L1(1.0)(tf.ones([2048, 2048]))) == 2.0**22
print(json.dumps(trained))
"""

DTENSOR = """
import oracles
from differentiation import value_and_gradient
from tensorflow.experimental import dtensor

virtual_cpus(4)
PENALTIES = {name: make(tfk) for name, (make, _) in oracles.PENALTIES.items()}
SUPPORTED = [name for name in PENALTIES if name.startswith("l")]
random = np.random.default_rng(0)
shapes = [(8, 6), (6,), (6, 4), (4,), (16, 8), (16, 4)]
*start, x, y = (0.7 * random.standard_normal(shape).astype("float32") for shape in shapes)

def weights_after_training(name, place, numpy, x, y):
    penalties = {"kernel_regularizer": PENALTIES[name]}
    layers = [
        tf_keras.layers.Dense(6, "tanh", bias_regularizer=tfk.L2(0.2), name="first", **penalties),
        tf_keras.layers.Dense(4, name="second", **penalties),
    ]
    model = tf_keras.Sequential(layers)
    model.build(x.shape)
    for weight, value in zip(model.weights, start):
        weight.assign(place(value, getattr(weight, "layout", None)))

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) + tf.add_n(model.losses)
        gradients = tape.gradient(loss, model.trainable_weights)
        # No optimizer is used: those of TensorFlow 2.16 fail on weights that are split by row, even without a penalty.
        for weight, gradient in zip(model.trainable_weights, gradients):
            weight.assign_sub(0.1 * gradient)

    function = tf.function(step, autograph=False)
    for _ in range(6):
        function(x, y)
    weights = enumerate(model.weights)
    return model, {f"{name}, weight {i}": numpy(weight.read_value()).tolist() for i, weight in weights}

one_device = {}
for name in SUPPORTED:
    _, weights = weights_after_training(name, lambda array, layout: array, lambda tensor: tensor.numpy(), x, y)
    one_device |= weights

ALL = dtensor.UNSHARDED
LAYOUTS = {"replicated": [ALL, ALL], "by row": ["a", ALL], "by column": [ALL, "b"], "by both": ["a", "b"]}
mesh = dtensor.create_mesh([("a", 2), ("b", 2)], device_type="CPU")
tf_keras.backend.experimental.enable_tf_random_generator()
tf_keras.utils.set_random_seed(0)

def place(array, layout):
    everywhere = dtensor.Layout.replicated(mesh, array.ndim)
    return dtensor.relayout(dtensor.copy_to_mesh(tf.constant(array), everywhere), layout)

def numpy(tensor):
    return dtensor.relayout(tensor, dtensor.Layout.replicated(mesh, tensor.shape.rank)).numpy()

sharded = {layout: {} for layout in LAYOUTS}
for layout, (row, column) in LAYOUTS.items():
    layouts = tf_keras.dtensor.experimental.LayoutMap(mesh=mesh)
    specs = {"first.kernel": [row, column], "first.bias": [column]}
    specs |= {"second.kernel": [column, ALL], "second.bias": [ALL]}
    for name, spec in specs.items():
        layouts[name] = dtensor.Layout(spec, mesh)
    by_example = dtensor.Layout(["a", ALL], mesh)
    for name in SUPPORTED:
        with layouts.scope():
            data = place(x, by_example), place(y, by_example)
            model, weights = weights_after_training(name, place, numpy, *data)
        assert [weight.layout.sharding_specs for weight in model.weights] == list(specs.values())
        sharded[layout] |= weights

def attempt(function, *arguments):
    try:
        return [numpy(each).tolist() for each in function(*arguments)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

LARGE = 0.7 * random.standard_normal((64, 56)).astype("float32")
large = {}
for layout, specs in LAYOUTS.items():
    kernel = place(LARGE, dtensor.Layout(specs, mesh))
    for name, penalty in PENALTIES.items():
        large[f"{layout}, {name}"] = attempt(tf.function(value_and_gradient(penalty), autograph=False), kernel)
        large[f"{layout}, {name}, eager"] = attempt(lambda: [penalty(kernel)])
print(json.dumps([one_device, sharded, LARGE.tolist(), large]))
"""


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def run_program(run_python):
    """Return a function that runs a program after `MODEL`, and returns the JSON in its last line of output."""

    def run(program, *arguments, **environment):
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **environment}
        program = f"import sys\nsys.path.append({str(pathlib.Path(__file__).parent)!r})\n{MODEL}{program}"
        return json.loads(run_python("-c", program, *arguments, **environment).splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def trained(run_program):
    """The results of training on one device: with plain operations, and tiled and compiled."""
    return run_program(ONE_DEVICE)


@pytest.fixture(scope="module")
def parameter_servers(run_program):
    return run_program(PARAMETER_SERVERS, *free_ports(3))


def check(what, result, expected):
    """Compare weights, by relative error if they are larger than 1, and print the largest difference."""
    assert result.keys() == expected.keys()
    found = {}
    for name, value in expected.items():
        right = np.array(value)
        assert np.isfinite(right).all()
        found[name] = (np.abs(np.array(result[name]) - right) / np.maximum(np.abs(right), 1)).max()
    worst = max(found, key=found.get)
    print(f"\n{what}: largest difference of a weight {found[worst]:.1e} ({worst})", end="")
    assert found[worst] <= TOLERANCE, found


def check_training(what, results, expected):
    """Compare the logs and weights of training runs."""
    for result, right in zip(results, expected, strict=True):
        assert list(result["history"]) == list(right["history"])
        logs, expected_logs = ([*each["history"].values()] for each in (result, right))
        np.testing.assert_allclose(logs, expected_logs, rtol=TOLERANCE)
        check(what, result["weights"], right["weights"])


def test_one_device(trained):
    (direct, scheduled), tiled = trained
    assert set(tiled["used"]) == {"tiled", "XLA_CLUSTER"}
    check_training("one device, tiled and in XLA clusters against direct", [tiled], [direct])
    assert set(scheduled["history"]) == {"loss", "data_loss", "penalty", "l1"}
    assert scheduled["history"]["l1"] == [0.125, 0.0, 0.03125]


@pytest.mark.parametrize("replicas", [2, 4])
def test_mirrored(replicas, run_program, trained, tmp_path):
    results = run_program(REPLICAS, replicas, tmp_path / "model.keras")
    assert set(results[0]["used"]) == {"tiled", "XLA_CLUSTER"}
    check_training(f"MirroredStrategy, {replicas} replicas", results, trained[0])
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("shared_dense").kernel_regularizer.l1 == 0.03125


def test_multi_worker(run_program, trained):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]

    def work(index):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        return run_program(REPLICAS, 2, TF_CONFIG=json.dumps(task))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        chief, other = pool.map(work, range(2))
    assert set(chief[0]["used"]) == {"tiled", "XLA_CLUSTER"}
    assert [result["weights"] for result in chief] == [result["weights"] for result in other]
    check_training("MultiWorkerMirroredStrategy, 2 processes", chief, trained[0])


@pytest.mark.parametrize("shards", ["1", "2", "3"])
def test_parameter_server(shards, parameter_servers, trained):
    """The first shard has the whole penalty, except for sums over rows, which each shard computes for itself."""
    results = parameter_servers[shards]
    assert {"tiled", "XLA_CLUSTER"} <= set(results[0]["used"])
    check_training(f"ParameterServerStrategy, variables in {shards} shards", results, trained[0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", [(7, 3), (4, 9), (3, 4)], ids=str)
@pytest.mark.parametrize("name", ORACLES)
def test_the_shards_of_a_variable_add_up_to_its_penalty(name, shape, count, dtype):
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    shards = list(map(tf.Variable, np.array_split(values, count)))
    whole = sharded_variable.ShardedVariable(shards)
    expected, expected_gradient = ORACLES[name][1](values.astype("float64"))
    penalty = ORACLES[name][0](tfk)
    assert float(penalty(whole)) == pytest.approx(expected, rel=2e-6)
    with tf.GradientTape() as tape:
        total = tf.add_n(list(map(penalty, shards)))
    gradient = np.concatenate([tf.convert_to_tensor(one) for one in tape.gradient(total, shards)])
    assert float(total) == pytest.approx(expected, rel=2e-6)
    atol = (2e-6 if dtype == "float32" else 1e-3) * np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=atol)


@pytest.mark.parametrize("cls", [tfk.OrthogonalRegularizer, tfk.SampledOrthogonalRegularizer, tfk.GroupLasso])
def test_a_shard_of_a_deleted_variable_has_the_penalty_of_its_rows(cls):
    values = np.random.default_rng(0).standard_normal((7, 3)).astype("float32")
    shards = [tf.Variable(values[:4]), tf.Variable(values[4:])]
    sharded_variable.ShardedVariable(shards)
    assert float(cls()(shards[0])) == float(cls()(values[:4]))


@pytest.mark.parametrize("sizes", [(3, 2, 2), (1, 5, 1)], ids=str)
def test_rows_are_drawn_from_shards_of_any_sizes(sizes):
    ends = np.cumsum(sizes)
    values = np.eye(7, dtype="float32")
    shards = [tf.Variable(values[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    rows = gather_rows(sharded_variable.ShardedVariable(shards), tf.constant([5, 0, 3, 6])).numpy()
    assert set(map(tuple, rows)) <= set(map(tuple, values))
    assert len(set(map(tuple, rows))) == 4


@pytest.fixture(scope="module")
def on_mesh(run_program):
    return run_program(DTENSOR, DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION="0")


@pytest.mark.parametrize("layout", ["replicated", "by row", "by column", "by both"])
def test_dtensor(layout, on_mesh):
    """The weights are right on a 2 x 2 mesh if DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION=0.

    The kernel of the first layer is split as `layout` says, its bias and the second layer are split to match, and the
    batch is split by example. Without this environment variable, TensorFlow combines the all-reduces of a step, and
    the weights are silently wrong, by up to 0.07 here. It must be set before the mesh is created.
    """
    one_device, sharded, *_ = on_mesh
    check(f"DTensor, kernel {layout}", sharded[layout], one_device)


@pytest.mark.parametrize("mode", ["graph", "eager"])
@pytest.mark.parametrize("layout", ["replicated", "by row", "by column", "by both"])
@pytest.mark.parametrize("name", PENALTIES)
def test_dtensor_of_a_large_kernel_gives_no_wrong_number(name, layout, mode, on_mesh):
    """Matrix penalties are not supported, and may raise an error instead."""
    *_, kernel, large = on_mesh
    result = large[f"{layout}, {name}{', eager' * (mode == 'eager')}"]
    if isinstance(result, str) and "Error: " in result and not name.startswith("l"):
        return
    assert isinstance(result, list), result
    for actual, expected in zip(result, PENALTIES[name][1](np.array(kernel, "float64")), strict=False):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
