"""The orthogonality penalty of a sample of the rows."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from differentiation import MODES, assert_close, run, value_and_gradient
from oracles import orthogonal

import tfk_regularizers as tfk
from tfk_regularizers._penalties import sampled_orthogonal

modes = pytest.mark.parametrize("mode", MODES)
axes = pytest.mark.parametrize("axis", ["rows", "columns"])


def table(rows=40, columns=6, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype("float32")


def oriented(x, axis):
    return x if axis == "rows" else x.T


@modes
@axes
@pytest.mark.parametrize("sample_size", [40, 41, 4096])
@pytest.mark.light(mode=["eager", "graph"])
@pytest.mark.light(sample_size=[40])
def test_a_sample_of_all_rows_is_exact(axis, sample_size, mode):
    penalty = tfk.SampledOrthogonalRegularizer(0.3, axis, sample_size)
    value, gradient = run(mode, value_and_gradient(penalty), tf.constant(oriented(table(), axis)))
    expected_value, expected_gradient = orthogonal(table().astype("float64"), 0.3, "rows")
    assert_close(value, expected_value, 2e-6)
    assert_close(gradient, oriented(expected_gradient, axis), 2e-6)


@modes
@axes
@pytest.mark.light(mode=["graph"], axis=["rows"])
def test_the_value_is_unbiased(axis, mode):
    """The mean of m draws is within five standard errors of the exact value, and the errors shrink like 1 / √m."""
    penalty = tfk.SampledOrthogonalRegularizer(1.0, axis, 4)
    x = tf.constant(oriented(table(12, 2), axis))
    tf.random.set_seed(7)
    # Each call draws once, because XLA of TensorFlow 2.18 repeats its random numbers within a program.
    draw = penalty if mode == "eager" else tf.function(penalty, jit_compile=mode == "xla" or None)
    values = np.array([draw(x) for _ in range(2000)], "float64")
    exact, _ = orthogonal(table(12, 2).astype("float64"), 1.0, "rows")
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert 0 < error < 0.01
    assert abs(values.mean() - exact) < 5 * error
    errors = np.abs(values.reshape(40, 50).mean(1) - exact)
    assert np.sqrt((errors**2).mean()) == pytest.approx(error * np.sqrt(40), rel=0.5)


def test_every_pair_is_drawn_as_often():
    """If only one of the 10 pairs of 5 rows is parallel, the mean penalty is the frequency of that pair."""
    tf.random.set_seed(3)
    penalty = tf.function(tfk.SampledOrthogonalRegularizer(1.0, sample_size=2))
    for i, j in itertools.combinations(range(5), 2):
        x = np.eye(5, dtype="float32")
        x[j] = x[i]
        frequency = np.mean([penalty(tf.constant(x)) for _ in range(400)])
        assert frequency == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 400))


@modes
@pytest.mark.light(mode=["graph"])
def test_rows_are_drawn_uniformly_from_a_hundred_million(mode):
    """The mean position, and the share of each tenth of the rows, are within five standard deviations."""
    tf.random.set_seed(5)
    n, draws = 10**8, 200
    rows = tf.range(n)[:, tf.newaxis]
    draw = lambda: sampled_orthogonal.draw_slices(rows, 2, 0)  # noqa: E731
    if mode != "eager":
        draw = tf.function(draw, jit_compile=mode == "xla" or None, autograph=False)
    drawn = np.concatenate([draw().numpy() for _ in range(draws)]).ravel() / n
    assert drawn.mean() == pytest.approx(0.5, abs=5 / np.sqrt(12 * drawn.size))
    tenths = np.histogram(drawn, 10, (0, 1))[0] / drawn.size
    assert tenths == pytest.approx(np.full(10, 0.1), abs=5 * np.sqrt(0.1 * 0.9 / drawn.size))


@modes
@pytest.mark.parametrize(("n", "size"), [(10, 5), (10, 6), (10, 9), (5000, 2500)], ids=str)
@pytest.mark.light(mode=["graph"])
def test_rows_are_drawn_without_replacement(n, size, mode):
    for _ in range(3):
        drawn = run(mode, lambda: sampled_orthogonal.draw_slices(tf.range(n), size, 0))
        assert len(set(drawn.numpy().tolist())) == size


def test_every_row_is_drawn_as_often_if_half_of_them_are_drawn():
    """Drawing repeated numbers again does not prefer some rows to others."""
    tf.random.set_seed(9)
    draw = tf.function(lambda: sampled_orthogonal.draw_slices(tf.range(8), 4, 0))
    counts = np.bincount(np.concatenate([draw().numpy() for _ in range(2000)]), minlength=8) / 2000
    assert counts == pytest.approx(np.full(8, 0.5), abs=5 * np.sqrt(0.25 / 2000))


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 9, 10, 40])
@pytest.mark.light(mode=["graph"])
def test_rows_of_an_unknown_number_are_drawn_once(n, mode):
    draw = tf.function(
        lambda x: sampled_orthogonal.draw_slices(x, 5, 0),
        input_signature=[tf.TensorSpec([None], tf.int32)],
        jit_compile=mode == "xla" or None,
    )
    drawn = draw(tf.range(n)).numpy().tolist()
    assert len(set(drawn)) == len(drawn) == min(n, 5)


@modes
@axes
@pytest.mark.light(mode=["eager", "graph"])
def test_each_call_draws_anew_and_other_rows_get_no_gradient(axis, mode):
    step = value_and_gradient(tfk.SampledOrthogonalRegularizer(1.0, axis, 5))
    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla" or None)
    drawn = []
    for _ in range(10):
        _, gradient = step(tf.constant(oriented(table(), axis)))
        touched = oriented(tf.convert_to_tensor(gradient).numpy(), axis).any(axis=1)
        assert touched.sum() == 5
        drawn.append(tuple(np.flatnonzero(touched)))
    assert len(set(drawn)) > 5


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_global_seed_makes_draws_repeatable(mode):
    def draws():
        tf.random.set_seed(11)
        penalty = tfk.SampledOrthogonalRegularizer(1.0, sample_size=5)
        call = penalty if mode == "eager" else tf.function(penalty)
        return [float(call(tf.constant(table()))) for _ in range(4)]

    first = draws()
    assert first == draws()
    assert len(set(first)) == 4


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("sample_size", [5, 100])
@pytest.mark.light(mode=["graph"])
def test_unknown_shapes(sample_size, mode):
    penalty = tfk.SampledOrthogonalRegularizer(1.0, sample_size=sample_size)
    function = tf.function(
        penalty, input_signature=[tf.TensorSpec([None, None], tf.float32)], jit_compile=mode == "xla" or None
    )
    value = float(function(tf.constant(table())))
    assert 0 < value < 1
    if sample_size == 100:
        assert value == pytest.approx(orthogonal(table().astype("float64"), 1.0, "rows")[0], rel=2e-6)


@modes
@pytest.mark.light(mode=["eager", "graph"])
def test_the_rows_of_a_variable_get_a_sparse_gradient(mode):
    variable = tf.Variable(table())

    def step():
        with tf.GradientTape() as tape:
            value = tfk.SampledOrthogonalRegularizer(1.0, sample_size=5)(variable)
        gradient = tape.gradient(value, variable)
        assert isinstance(gradient, tf.IndexedSlices)
        return gradient.values

    assert run(mode, step).shape == (5, 6)


@modes
@pytest.mark.light(mode=["graph"])
def test_an_embedding_trains(mode):
    layer = tf_keras.layers.Embedding(
        50, 4, embeddings_regularizer=tfk.SampledOrthogonalRegularizer(1.0, sample_size=10), input_length=1
    )
    model = tf_keras.Sequential([layer, tf_keras.layers.Flatten(), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=mode == "eager", jit_compile=mode == "xla")
    before = orthogonal(layer.embeddings.numpy().astype("float64"), 1.0, "rows")[0]
    history = model.fit(np.arange(50)[:, None], np.zeros(50), epochs=2, batch_size=5, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert orthogonal(layer.embeddings.numpy().astype("float64"), 1.0, "rows")[0] != before


@pytest.mark.parametrize("save_format", ["keras", "h5", "tf"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")  # tf_keras warns each time
def test_files_hold_it_under_the_name_of_the_package(save_format, tmp_path):
    regularizer = tfk.SampledOrthogonalRegularizer(0.25, "columns", 7)
    model = tf_keras.Sequential([tf_keras.layers.Dense(9, kernel_regularizer=regularizer, input_shape=(4,))])
    path = tmp_path / ("model" if save_format == "tf" else f"model.{save_format}")
    model.save(path, save_format=save_format)
    loaded = tf_keras.models.load_model(path).layers[0].kernel_regularizer
    assert repr(loaded) == repr(regularizer)
    config = tfk.serialize(regularizer)
    assert config["registered_name"] == "tfk_regularizers>SampledOrthogonalRegularizer"
    assert repr(tfk.get(config)) == repr(regularizer)


@pytest.mark.parametrize("size", [1, 0, -5, 2.0, "4", None, True, [4]], ids=repr)
def test_a_bad_sample_size_is_refused(size):
    with pytest.raises(ValueError, match=r"`sample_size`. Expected an integer of at least 2. Received: sample_size="):
        tfk.SampledOrthogonalRegularizer(sample_size=size)


def test_integers_of_numpy_are_sizes():
    assert repr(tfk.SampledOrthogonalRegularizer(sample_size=np.int64(5))).endswith("sample_size=5)")


@pytest.mark.parametrize(
    "x", [tf.Variable([[1, 2]]), tf.Variable([1.0, 2.0]), tf.sparse.eye(3)], ids=["int", "1", "sp"]
)
def test_bad_tensors_are_refused(x):
    with pytest.raises((TypeError, ValueError), match="Inputs to SampledOrthogonalRegularizer must"):
        tfk.SampledOrthogonalRegularizer()(x)


def test_it_works_where_tensors_compare_by_identity():
    tf.compat.v1.disable_tensor_equality()
    try:
        x = tf.random.stateless_normal([100, 3], [1, 2])
        assert float(tf.function(tfk.SampledOrthogonalRegularizer(1.0, sample_size=10))(x)) > 0
    finally:
        tf.compat.v1.enable_tensor_equality()
