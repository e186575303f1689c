"""`set_regularizers` and `penalties`, compared with models rebuilt from their configs and sums computed by hand."""

import json
import re
import textwrap
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import KERASES, both_kerases, needs_keras3
from tf_keras import layers

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, OrthogonalRegularizer, _keras, penalties, serialize, set_regularizers

# tf_keras warns about its own `.h5` format, which users still have.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def sequential(keras):
    layers = keras.layers
    hidden = layers.Dense(3, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(2, name="head")])


def chain(keras, shape, *functions):
    x = inputs = keras.Input(shape)
    for function in functions:
        x = function(x)
    return keras.Model(inputs, x)


def convolutional(keras):
    layers = keras.layers
    conv = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")
    middle = layers.BatchNormalization(name="norm"), layers.DepthwiseConv2D(3, name="depthwise")
    separable = layers.PReLU(name="prelu"), layers.SeparableConv2D(5, 3, name="separable")
    return chain(keras, (6, 6, 3), conv, *middle, *separable, layers.Flatten(), layers.Dense(2, name="head"))


def nested(keras):
    layers = keras.layers
    block = keras.Sequential([layers.Dense(4, name="dense"), layers.Dense(3, name="out")], name="block1")
    return chain(keras, (4,), block, layers.Dense(2, name="dense"))


def shared(keras):
    layers = keras.layers
    dense = layers.Dense(4, name="shared")
    return chain(keras, (4,), dense, dense, layers.Dense(2, name="head"))


def recurrent(keras):
    layers = keras.layers
    stack = layers.RNN([layers.SimpleRNNCell(2), layers.LSTMCell(2)], return_sequences=True, name="stack")
    gates = [make(2, return_sequences=True, name=make.__name__.lower()) for make in (layers.LSTM, layers.GRU)]
    distributed = layers.TimeDistributed(layers.Dense(2, name="dense"), name="distributed")
    return chain(keras, (5, 3), *gates, stack, distributed, layers.SimpleRNN(2, name="simple"))


def bidirectional(keras):
    layers = keras.layers
    rnn = layers.SimpleRNN if keras is tf_keras else layers.GRU  # Keras 3's SimpleRNN ignores its activity regularizer
    both = layers.Bidirectional(rnn(2, return_sequences=True, name="both"), name="both")
    backward = rnn(2, go_backwards=True, name="second")
    own = layers.Bidirectional(rnn(2, name="first"), backward_layer=backward, name="own")
    return chain(keras, (5, 3), both, own)


def attention(keras):
    layers = keras.layers
    self_attention = layers.MultiHeadAttention(2, 2, name="attention")
    einsum = layers.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d", name="einsum")
    norm = layers.LayerNormalization(name="norm")
    return chain(keras, (5,), layers.Embedding(7, 4, name="embedding"), lambda x: self_attention(x, x), einsum, norm)


@tf_keras.saving.register_keras_serializable("tests")
class Subclassed(tf_keras.Model):
    """A model with two layers of the same name in a list, and a loss of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(4, name="dense"), layers.Dense(2, name="dense")]
        self.add_loss(lambda: tf.constant(7.0))

    def call(self, inputs):
        return self.blocks[1](self.blocks[0](inputs))


ALL = (sequential, convolutional, nested, shared, recurrent, bidirectional, attention)
SAVED = [(keras, make, suffix) for keras in KERASES.values() for make in ALL for suffix in (".keras", ".h5")]
SAVED += [
    (tf_keras, make, "") for make in (nested, attention, convolutional, recurrent)
]  # others take ten seconds each
WEIGHTS = ("kernel", "bias", "depthwise", "pointwise", "recurrent", "embeddings", "gamma", "beta", "alpha")
KEYWORDS = [f"{name}_regularizer" for name in WEIGHTS]
UNWRITTEN = ("Dense", "Conv2D", "DepthwiseConv2D", "SeparableConv2D")  # Keras 3 omits an activity regularizer of None


def built(make, keras=tf_keras):
    """A model whose weights, including biases, are random."""
    keras.utils.set_random_seed(0)
    model = make(keras)
    if not model.built:
        model.build((None, 4))
    random = np.random.default_rng(0)
    for weight in model.weights:
        value = random.normal(scale=0.5, size=weight.shape)
        weight.assign(abs(value) if "variance" in weight.name else value)
    return model


def library_of(model):
    return tf_keras if isinstance(model, tf_keras.Model) else KERASES["Keras 3"]


def data(model, count=8):
    random = np.random.default_rng(1)
    shape = (count, *getattr(model, "input_shape", (None, 4))[1:])
    if any(type(layer).__name__ == "Embedding" for layer in model.layers):
        return random.integers(0, 7, size=shape)
    return random.normal(size=shape).astype("float32")


def rebuilt(model, **regularizers):
    """Rebuild the model from its config, after replacing the regularizers of these keywords in it."""

    def walk(config, around=""):
        if isinstance(config, dict):
            keys = [*config, *(["activity_regularizer"] if around in UNWRITTEN else [])]
            changed = {key: serialize(regularizers[key]) for key in keys if key in regularizers}
            if library_of(model) is not tf_keras and around in ("EinsumDense", "MultiHeadAttention"):
                changed.pop("activity_regularizer", None)  # as in tf_keras, whose files omit it
            return {**{key: walk(value, config.get("class_name")) for key, value in config.items()}, **changed}
        return [walk(value) for value in config] if isinstance(config, (list, tuple)) else config

    other = type(model).from_config(walk(model.get_config()))
    other.set_weights(model.get_weights())
    return other


def values(model):
    return np.array([float(loss) for loss in model.losses])


def assert_equals_rebuilt(model, **regularizers):
    np.testing.assert_allclose(values(model), values(rebuilt(model, **regularizers)), rtol=1e-6)


def by_path(model):
    return {path: float(value) for path, value in penalties(model).items()}


def present(model):
    """The weight keywords that would change something, according to the package's own error message."""
    with pytest.raises(ValueError, match="would change nothing") as caught:
        set_regularizers(model, no_regularizer=None)
    listed = str(caught.value).split("Expected one of: ")[1].rstrip(".").split(", ")
    return [keyword for keyword in listed if keyword != "activity_regularizer"]


def saved_and_loaded(model, suffix, folder):
    model.save(folder / f"model{suffix}", **({} if suffix else {"save_format": "tf"}))
    # Keras 3.15 does not open its .h5 files of models that were compiled with "mse".
    arguments = {} if isinstance(model, tf_keras.Model) else {"compile": False}
    return library_of(model).models.load_model(folder / f"model{suffix}", **arguments)


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def only(*names):
    return lambda layer: layer.name in names


def state(model):
    """Everything that a failing call must leave unchanged."""
    if not isinstance(model, tf_keras.Model):
        return state_in_keras3(model)
    found = [json.dumps(model.get_config(), default=str), model.train_function, model.test_function]
    for layer in model._flatten_layers():
        losses = (*layer._callable_losses, None, *layer._losses, None, *layer._eager_losses)
        found.append(list(map(id, losses)))
        found += [id(value) for name, value in sorted(vars(layer).items()) if name.endswith("_regularizer")]
        found += sorted((name, id(child)) for name, child in layer._trackable_children().items())
    return found


def state_in_keras3(model):
    found = [json.dumps(model.get_config(), default=str), model.train_function, model.test_function]
    found += [id(variable.regularizer) for variable in model.variables]
    for layer in model._flatten_layers():
        found.append(list(map(id, layer._losses)))
        found += [id(value) for name, value in sorted(vars(layer).items()) if name.endswith("_regularizer")]
    return found


class TestSetRegularizers:
    @pytest.mark.parametrize("make", ALL)
    @pytest.mark.light(make=[sequential, nested, recurrent, attention])
    @both_kerases
    def test_set_replace_and_remove(self, make, keras):
        model = built(make, keras)
        paths = set_regularizers(model, **dict.fromkeys(present(model), "l1"))
        assert_equals_rebuilt(model, **dict.fromkeys(KEYWORDS, L1()))
        factors = {keyword: 0.1 * (number + 1) for number, keyword in enumerate(KEYWORDS) if keyword in present(model)}
        configs = {keyword: {"class_name": "L2", "config": {"l2": factor}} for keyword, factor in factors.items()}
        assert sorted(set_regularizers(model, **configs)) == sorted(set(paths))
        truth = {keyword: L2(factor) for keyword, factor in factors.items()}
        assert_equals_rebuilt(model, **truth)
        assert sorted(penalties(model)) == sorted(paths)
        found, losses = list(by_path(model).values()), values(model)
        if keras is not tf_keras:  # Keras 3 lists losses in the order of the weights
            found, losses = sorted(found), sorted(losses)
        np.testing.assert_allclose(found, losses, rtol=1e-6)
        assert all(value.shape == () for value in penalties(model).values())

        kernels = set_regularizers(model, kernel_regularizer=None)
        assert sorted(kernels + list(penalties(model))) == sorted(paths)
        assert_equals_rebuilt(model, **truth | {"kernel_regularizer": None})
        assert set_regularizers(model, kernel_regularizer=None) == []
        set_regularizers(model, **dict.fromkeys(present(model)))
        assert model.losses == []
        assert penalties(model) == {}

    @pytest.mark.parametrize(("keras", "make", "suffix"), SAVED)
    @pytest.mark.light(suffix=[".keras"], make=[sequential, nested, recurrent])
    @pytest.mark.light(suffix=[""], make=[nested])
    def test_file(self, keras, make, suffix, tmp_path):
        model = built(make, keras)
        keywords = [*present(model), "activity_regularizer"]
        set_regularizers(model, **dict.fromkeys(keywords, L2(0.1)))
        loaded = saved_and_loaded(model, suffix, tmp_path)
        assert by_path(loaded) == pytest.approx(by_path(model), rel=1e-6)
        for other in (model, loaded):
            other.compile("sgd", "mse")
        batch = data(model), np.zeros_like(model(data(model)))
        assert loaded.evaluate(*batch, verbose=0) == pytest.approx(model.evaluate(*batch, verbose=0), rel=1e-5)
        if suffix:
            set_regularizers(model, **dict.fromkeys(keywords))
            assert saved_and_loaded(model, suffix, tmp_path).losses == []

    @pytest.mark.parametrize("make", [sequential, nested, shared, recurrent])
    @pytest.mark.light(make=[sequential])
    @both_kerases
    def test_fit(self, make, keras):
        """The step is traced again, keeps the optimizer state, and trains like a model built with this regularizer."""
        model = built(make, keras)
        x = data(model)
        y = np.zeros((len(x), 2))
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.fit(x, y, verbose=0)
        model.evaluate(x, y, verbose=0)
        weights, slots = model.get_weights(), [v.numpy() for v in model.optimizer.variables]

        set_regularizers(model, kernel_regularizer=L2(0.3))
        np.testing.assert_array_equal(flat(model.get_weights()), flat(weights))
        np.testing.assert_array_equal(flat(v.numpy() for v in model.optimizer.variables), flat(slots))
        truth = rebuilt(built(make, keras), kernel_regularizer=L2(0.3))
        truth.set_weights(weights)
        truth.compile(keras.optimizers.Adam(0.1), "mse")
        truth.optimizer.build(truth.trainable_variables)
        for variable, value in zip(truth.optimizer.variables, slots, strict=True):
            variable.assign(value)
        for other in (model, truth):
            other.fit(x, y, verbose=0)
        np.testing.assert_allclose(flat(model.get_weights()), flat(truth.get_weights()), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0), truth.evaluate(x, y, verbose=0), rtol=1e-5)

        set_regularizers(model, kernel_regularizer=None)
        mse = np.mean(np.square(model.predict(x, verbose=0) - y))
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0), mse, rtol=1e-5)

    @both_kerases
    def test_where(self, keras):
        model, conv = built(convolutional, keras), keras.layers.Conv2D
        paths = set_regularizers(model, kernel_regularizer="l2", where=lambda layer: isinstance(layer, conv))
        assert paths == list(penalties(model)) == ["conv/kernel"]  # in tf_keras a DepthwiseConv2D is a Conv2D
        assert getattr(model.get_layer("depthwise"), "kernel_regularizer", None) is None
        expected = "depthwise/depthwise_kernel" if keras is tf_keras else "depthwise/kernel"
        assert set_regularizers(model, depthwise_regularizer="l2", where=only("depthwise")) == [expected]

    @both_kerases
    def test_where_is_a_name_a_layer_or_a_list(self, keras):
        model = built(nested, keras)
        block, head = model.get_layer("block1"), model.get_layer("dense")
        in_block = ["block1/dense/kernel", "block1/out/kernel"]
        for where, paths in (
            ("block1", in_block),
            (block, in_block),
            ("dense", ["block1/dense/kernel", "dense/kernel"]),
            (head, ["dense/kernel"]),
            (["out", head], ["block1/out/kernel", "dense/kernel"]),
            (("block1", "dense"), [*in_block, "dense/kernel"]),
        ):
            assert set_regularizers(model, kernel_regularizer=L2(0.5), where=where) == paths
            assert list(penalties(model)) == paths
            set_regularizers(model, kernel_regularizer=None)
        model = built(recurrent, keras)
        cell = model.get_layer("lstm").cell
        for where in ("lstm", cell.name, cell):
            assert set_regularizers(model, kernel_regularizer="l2", where=where) == [f"lstm/{cell.name}/kernel"]

    @both_kerases
    def test_where_asks_the_layer_around_too(self, keras):
        model = built(recurrent, keras)
        for name in ("lstm", "simple"):
            vars(model.get_layer(name).cell)["name" if keras is not tf_keras else "_name"] = (
                "cell"  # the stack's cells may have the old name
            )
        stack = model.get_layer("stack").cell
        cells = [f"stack/{stack.name}/{cell.name}/kernel" for cell in stack.cells]
        expected = {"lstm": ["lstm/cell/kernel"], "stack": cells, stack.name: cells, stack.cells[0].name: cells[:1]}
        expected |= {name: ["distributed/dense/kernel"] for name in ("distributed", "dense")}
        for name, paths in expected.items():
            assert set_regularizers(model, kernel_regularizer="l2", where=only(name)) == paths

    @pytest.mark.parametrize(("keras", "suffix"), [(keras, suffix) for keras, make, suffix in SAVED if make is nested])
    @pytest.mark.light(suffix=[".keras", ".h5"])
    def test_one_direction(self, keras, suffix, tmp_path):
        model = built(bidirectional, keras)
        one = only("forward_first", "backward_both")
        paths = set_regularizers(model, kernel_regularizer=L2(0.1), where=one)
        assert [path.split("/")[:2] for path in paths] == [["both", "backward_both"], ["own", "forward_first"]]
        loaded = saved_and_loaded(model, suffix, tmp_path)
        np.testing.assert_allclose(values(loaded), values(model), rtol=1e-6)
        np.testing.assert_allclose(loaded(data(model)), model(data(model)), rtol=1e-6)
        assert [w.name for w in loaded.weights] == [w.name for w in model.weights]

    def test_frozen_layer_of_mixed_precision(self):
        """tf_keras penalizes frozen layers like others."""
        hidden = layers.Dense(3, name="hidden", dtype="mixed_float16", trainable=False)
        model = built(lambda keras: chain(keras, (4,), hidden, layers.Dense(2, name="head")))
        assert len(set_regularizers(model, kernel_regularizer=L2(0.1))) == 2
        assert_equals_rebuilt(model, kernel_regularizer=L2(0.1))

    def test_own_losses_of_model_and_layer_stay(self):
        model = built(lambda keras: Subclassed())
        first, second = (block.kernel for block in model.blocks)
        model.blocks[0].add_loss(lambda: 3.0 * tf.reduce_sum(first))
        own = 7.0 + 3.0 * np.sum(first.numpy())
        assert set_regularizers(model, kernel_regularizer=L2(0.5)) == ["dense/kernel", "dense_1/kernel"]
        squares = [0.5 * np.sum(np.square(kernel.numpy())) for kernel in (first, second)]
        assert sum(values(model)) == pytest.approx(own + sum(squares), rel=1e-6)
        paths = set_regularizers(model, kernel_regularizer=None, activity_regularizer="l2")
        assert paths == ["dense/kernel", "dense_1/kernel", "dense/activity", "dense_1/activity"]
        model(data(model))
        assert len(model.losses) == 4
        set_regularizers(model, activity_regularizer=None)
        assert sum(values(model)) == pytest.approx(own, rel=1e-6)

    @pytest.mark.parametrize("given", [None, L2(0.1)])
    @pytest.mark.parametrize("make", ALL)
    @pytest.mark.light(make=[sequential, nested])
    @both_kerases
    def test_activity_regularizer(self, make, given, keras):
        """The symbolic loss from construction is removed too; otherwise `fit` would use a tensor of another graph."""
        model = rebuilt(built(make, keras), activity_regularizer=given)
        x = data(model)
        removed = set_regularizers(model, activity_regularizer=None)
        assert model.losses == []
        y = model(x)
        assert model.losses == []
        model.compile("sgd", "mse")
        assert model.evaluate(x, y, verbose=0) == pytest.approx(0.0, abs=1e-6)
        paths = set_regularizers(model, activity_regularizer=L1(0.2))
        assert removed == (paths if given else [])
        truth = rebuilt(model, activity_regularizer=L1(0.2))
        for other in (model, truth):
            other(x)
        assert len(model.losses) > 0
        np.testing.assert_allclose(values(model), values(truth), rtol=1e-5)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(sum(values(truth)), rel=1e-4)

    @both_kerases
    def test_attribute_set_by_hand(self, keras):
        """Setting the attribute, which users try first, changes no loss; `set_regularizers` still resets it."""
        model = built(sequential, keras)
        model.layers[0].kernel_regularizer = L2(0.1)
        assert model.losses == []
        assert set_regularizers(model, kernel_regularizer=None) == ["hidden/kernel"]
        assert model.layers[0].kernel_regularizer is None

    @both_kerases
    def test_nested_model_that_was_traced(self, keras):
        model = built(nested, keras)
        block = model.get_layer("block1")
        block.compile("sgd", "mse")
        block.evaluate(np.zeros((1, 4)), np.zeros((1, 3)), verbose=0)
        set_regularizers(model, kernel_regularizer=L2(1.0))
        loss = block.evaluate(np.zeros((1, 4)), block(np.zeros((1, 4))), verbose=0)
        assert loss == pytest.approx(sum(values(block)), rel=1e-6)

    def test_partitioned_weight(self):
        """There is one penalty for each shard, as in tf_keras."""
        sharded_variable = pytest.importorskip("tensorflow.python.distribute.sharded_variable")
        model = built(sequential)
        layer = model.layers[0]
        shards = [tf.Variable(tf.ones([2, 3]), name=f"hidden/kernel/part_{i}") for i in range(2)]
        layer.kernel = sharded_variable.ShardedVariable(shards, name="hidden/kernel")
        set_regularizers(model, kernel_regularizer=L2(0.5), where=only("hidden"))
        assert by_path(model) == {"hidden/kernel/part_0": 3.0, "hidden/kernel/part_1": 3.0}
        set_regularizers(model, kernel_regularizer=None)
        assert model.losses == []

    def test_weight_whose_attribute_is_a_tensor(self):
        """Quantization wrappers leave a layer like this: the variable is still a weight, and still penalized."""
        model = built(sequential)
        hidden = model.layers[0]
        vars(hidden)["kernel"] = tf.identity(hidden.kernel)
        for regularizer, found in ((L2(0.1), ["hidden/kernel", "head/kernel"]), (None, [])):
            assert set_regularizers(model, kernel_regularizer=regularizer) == ["hidden/kernel", "head/kernel"]
            assert list(penalties(model)) == found

    def test_layer_of_ones_own(self):
        class Own(layers.Layer):
            def build(self, shape):
                self.table = self.add_weight(name="x/rows", shape=(shape[-1], 2), initializer="ones")
                for factor in (1, 2):
                    self.add_weight(name="part", shape=(), regularizer=L2(factor), initializer="ones")

            def call(self, inputs):
                return tf.matmul(inputs, self.table)

        own = Own(name="own")
        own.table_regularizer = None
        model = tf_keras.Sequential([own])
        model.build((None, 3))
        assert by_path(model) == {"own/part": 1.0, "own/part_1": 2.0}
        assert set_regularizers(model, table_regularizer=L2(1.0)) == ["own/rows"]
        assert by_path(model) == {"own/rows": 6.0, "own/part": 1.0, "own/part_1": 2.0}


class Unsaved(L2):
    def get_config(self):
        raise NotImplementedError("no config")


KERNEL, ORTHOGONAL = {"kernel_regularizer": "l2"}, OrthogonalRegularizer()
FAILURES = {
    "unknown": (sequential, {"kernel": "l2"}, r"`kernel` would.*one of: activity_reg.*, bias_reg.*, kernel_reg.*r\.$"),
    "misspelt": (sequential, {"kernel_regulariser": "l2"}, r"\. Did you mean `kernel_regularizer`\? Expected one"),
    "second_absent": (sequential, KERNEL | {"gamma_regularizer": "l2"}, "`gamma_regularizer` would"),
    "passed_over": (
        convolutional,
        KERNEL | {"where": only("depthwise")},
        "`where` chooses.*depthwise_regularizer",
    ),
    "nested_model": (nested, KERNEL | {"where": only("block1")}, "No keyword applies there"),
    "nowhere": (sequential, KERNEL | {"where": only("none")}, "`where` chooses no layer"),
    "no_keyword": (sequential, {}, "at least one keyword"),
    "where": (sequential, KERNEL | {"where": 3}, "argument `where`.*where=3"),
    "where_list": (sequential, KERNEL | {"where": ["hidden", 3]}, "argument `where`.*'hidden', 3"),
    "name": (nested, KERNEL | {"where": ["dense", "blok1"]}, "`where` names 'blok1', but no.*Did you mean 'block1'?"),
    "layer": (
        sequential,
        KERNEL | {"where": layers.Dense(1, name="other")},
        "has a layer 'other', which is not in the",
    ),
    "identifier": (sequential, {"kernel_regularizer": "l3"}, "Unknown regularizer: 'l3'"),
    "rank": (sequential, KERNEL | {"bias_regularizer": ORTHOGONAL}, r"`bias_reg.*'hidden/bias', .* \(3,\).*rank 2"),
    "raises": (sequential, {"kernel_regularizer": lambda x: 1 / 0}, "'hidden/kernel'.*ZeroDivisionError"),
    "not_scalar": (sequential, {"kernel_regularizer": tf.square}, r"'hidden/kernel'.*scalar.*\(4, 3\)"),
    "integer": (sequential, {"kernel_regularizer": tf.size}, "'hidden/kernel'.*scalar.*int32"),
    "none": (sequential, {"kernel_regularizer": lambda x: None}, "'hidden/kernel'"),
    "activity": (sequential, {"activity_regularizer": tf.abs}, r"'hidden/activity'.*scalar.*\(1, 3\)"),
    "activity_unsaved": (attention, {"activity_regularizer": "l2", "where": only("einsum", "norm")}, "change nothing"),
}
CALLS = {"penalties": penalties, "set": lambda model: set_regularizers(model, kernel_regularizer="l2")}


class TestFailure:
    @pytest.mark.parametrize("case", FAILURES)
    @both_kerases
    def test_changes_nothing(self, case, keras):
        make, arguments, message = FAILURES[case]
        model = built(make, keras)
        set_regularizers(model, kernel_regularizer=L1(0.1))
        model.compile("sgd", "mse")
        model(data(model, 1))
        model.make_train_function()
        model.make_test_function()
        before = state(model)
        with pytest.raises((ValueError, NotImplementedError), match=f"(?s){message}"):
            set_regularizers(model, **arguments)
        assert state(model) == before

    @pytest.mark.parametrize("make", [sequential, attention, bidirectional])
    @both_kerases
    def test_interrupted(self, make, keras, monkeypatch):
        model = built(make, keras)
        set_regularizers(model, kernel_regularizer="l1", activity_regularizer="l2")
        before = state(model)
        host = _keras.keras2 if keras is tf_keras else _keras.keras3
        monkeypatch.setattr(host, "retrace", mock.Mock(side_effect=KeyboardInterrupt))
        for regularizer in (L1(tf.Variable(0.5, trainable=False)), None):
            with pytest.raises(KeyboardInterrupt):
                set_regularizers(model, kernel_regularizer=regularizer, activity_regularizer=regularizer)
            assert state(model) == before

    def test_regularizer_without_config_in_a_bidirectional_layer(self):
        """In tf_keras a Bidirectional keeps the config of its backward layer."""
        model = built(bidirectional)
        before = state(model)
        with pytest.raises(NotImplementedError, match="no config"):
            set_regularizers(model, kernel_regularizer=Unsaved(0.1))
        assert state(model) == before

    def test_other_internals_of_tf_keras(self, monkeypatch):
        model = built(sequential)
        before = state(model)
        monkeypatch.setattr(_keras.keras2.layers, "as_weight_loss", lambda loss: None)
        with pytest.raises(RuntimeError, match="supports tf-keras 2"):
            set_regularizers(model, kernel_regularizer="l2")
        assert state(model) == before

    def test_not_built(self):
        model = Subclassed()
        for call in CALLS.values():
            with pytest.raises(ValueError, match=r"has no weights yet\. Call it on a batch of data first"):
                call(model)
        model.blocks.append(layers.Dense(1, name="unused"))
        model.call = lambda inputs: model.blocks[1](model.blocks[0](inputs))
        model(np.zeros((1, 4)))
        with pytest.raises(ValueError, match="layer 'unused' has no weights yet"):
            set_regularizers(model, kernel_regularizer="l2")
        set_regularizers(model, kernel_regularizer="l2", where=only("dense"))
        assert list(penalties(model)) == ["dense/kernel", "dense_1/kernel"]

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("model", [None, "model", *(keras.layers.Dense(1) for keras in KERASES.values())])
    def test_not_a_model(self, name, model):
        message = rf"`{name}.*` expects a Keras model\. Received: .* of type {re.escape(str(type(model)))}"
        with pytest.raises(TypeError, match=message):
            CALLS[name](model)


class TestPenalties:
    @pytest.mark.parametrize("jit_compile", [None, False, True])
    @both_kerases
    def test_equal_numpy_in_eager_mode_and_in_functions(self, jit_compile, keras):
        model = rebuilt(built(nested, keras), kernel_regularizer=L2(0.5))
        kernel = model.get_layer("dense").kernel

        def step():
            with tf.GradientTape() as tape:
                found = penalties(model)
                total = sum(found.values())
            return found, tape.gradient(total, kernel)

        found, gradient = (step if jit_compile is None else tf.function(step, jit_compile=jit_compile))()
        assert list(found) == ["block1/dense/kernel", "block1/out/kernel", "dense/kernel"]
        squares = [0.5 * np.sum(np.square(weight)) for weight in model.get_weights() if weight.ndim == 2]
        np.testing.assert_allclose(list(found.values()), squares, rtol=1e-6)
        np.testing.assert_allclose(gradient, kernel, rtol=1e-6)

    @pytest.mark.heavy
    def test_replicas_equal_one_device(self, run_python):
        """The loop in the docstring gives the same on two replicas as on one. Virtual devices need a new process."""
        script = """
            import numpy as np, tensorflow as tf, tf_keras
            from tfk_regularizers import penalties, set_regularizers
            cpus = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
            random = np.random.default_rng(0)
            x, y = random.normal(size=(48, 4)).astype("f4"), random.normal(size=(48, 1)).astype("f4")

            def trained(strategy):
                tf_keras.utils.set_random_seed(0)
                with strategy.scope():
                    layers = [tf_keras.layers.Dense(8, "tanh", input_shape=(4,)), tf_keras.layers.Dense(1)]
                    model, optimizer = tf_keras.Sequential(layers), tf_keras.optimizers.SGD(0.1)
                set_regularizers(model, kernel_regularizer="l2", bias_regularizer="l1")

                def step(x, y):
                    with tf.GradientTape() as tape:
                        errors = tf_keras.losses.mean_squared_error(y, model(x, training=True))
                        loss = tf.nn.compute_average_loss(errors)
                        loss += sum(penalties(model).values()) / strategy.num_replicas_in_sync
                    optimizer.minimize(loss, model.trainable_variables, tape)
                    return loss

                total = tf.function(lambda batch: strategy.reduce("SUM", strategy.run(step, batch), axis=None))
                data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
                losses = [float(total(batch)) for batch in strategy.experimental_distribute_dataset(data)]
                return losses, np.concatenate([w.ravel() for w in model.get_weights()])

            one = trained(tf.distribute.get_strategy())
            two = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
            np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
            np.testing.assert_allclose(one[1], two[1], rtol=1e-5, atol=1e-6)
        """
        run_python("-c", textwrap.dedent(script))


@pytest.mark.heavy
def test_tensorflow_1_graphs(run_python):
    script = """
        import numpy as np, pytest, tensorflow as tf, tf_keras, tfk_regularizers as tfk
        tf.compat.v1.disable_eager_execution()
        x, y = np.ones((4, 3)), np.zeros((4, 2))
        model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2, kernel_regularizer="l2")])
        model.compile(tf_keras.optimizers.legacy.SGD(0.1), "mse")
        with pytest.raises(RuntimeError, match="RegularizationScheduler needs TensorFlow 2.*TensorFlow 1 graphs"):
            model.fit(x, y, verbose=0, callbacks=[tfk.RegularizationScheduler(lambda epoch: 0.5)])
        penalty = sum(tf_keras.backend.get_value(value) for value in tfk.penalties(model).values())
        np.testing.assert_allclose(penalty, 0.01 * np.sum(np.square(model.get_weights()[0])), rtol=1e-6)
        mse = np.mean((model.predict(x) - y) ** 2)
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0), mse + penalty, rtol=1e-5)
    """
    run_python("-c", textwrap.dedent(script))


@needs_keras3
@pytest.mark.parametrize("frozen", [False, True])
def test_penalties_of_a_keras_3_model(frozen):
    keras = tf.keras
    block = keras.Sequential([keras.layers.Dense(3, kernel_regularizer=L2(0.5), name="dense")], name="block1")
    recurrent = keras.layers.LSTM(2, recurrent_regularizer=L1(0.5), name="lstm")
    head = keras.layers.Dense(1, bias_regularizer=L2(1.0), bias_initializer="ones", name="dense")
    with pytest.raises(ValueError, match="has no weights yet"):
        penalties(keras.Sequential([block]))
    model = keras.Sequential([keras.Input((4, 2)), block, recurrent, head])
    block.trainable = not frozen
    paths = ["block1/dense/kernel", "lstm/lstm_cell/recurrent_kernel", "dense/bias"]
    assert list(penalties(model)) == paths[frozen:]
    assert float(penalties(model)["dense/bias"]) == 1.0
    for found in (penalties(model), tf.function(lambda: penalties(model))()):
        np.testing.assert_allclose(sum(found.values()), sum(model.losses), rtol=1e-6)


class Unknown(layers.Layer):
    """A layer whose class is not registered, so that it is not found when the layer is loaded."""

    def build(self, shape):
        self.kernel = self.add_weight("kernel", (shape[-1], 2), initializer="ones", regularizer=self.regularizer)
        self.inner = layers.Dense(2, name="inner")

    def call(self, inputs):
        return self.inner(inputs @ self.kernel)


@pytest.mark.parametrize("regularizer", [L2(0.5), None])
def test_layer_loaded_from_a_saved_model_without_its_class(regularizer, tmp_path):
    """Such a layer consists of graphs that cannot be changed, including the outputs of its inner layers."""
    layer = Unknown(name="unknown")
    layer.regularizer = regularizer
    model = chain(tf_keras, (4,), layer, layers.Dense(1, kernel_initializer="ones", name="head"))
    model = saved_and_loaded(model, "", tmp_path)
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    own, before = values(model).tolist(), state(model)
    message = "layer 'unknown' was loaded from a SavedModel without its class.*`custom_objects`"
    for keyword, where in (("kernel", None), ("kernel", "unknown"), ("activity", "unknown"), ("activity", "inner")):
        with pytest.raises(ValueError, match=f"{message}, or exclude the layer with `where`"):
            set_regularizers(model, **{f"{keyword}_regularizer": "l2"}, where=where and only(where))
    assert state(model) == before
    assert set_regularizers(model, kernel_regularizer=L2(1.0), where=only("head")) == ["head/kernel"]
    x, y = np.zeros((1, 4)), np.zeros((1, 1))
    scheduler = tfk.RegularizationScheduler(lambda epoch: 0.25, where=only("head"))
    assert model.fit(x, y, verbose=0, callbacks=[scheduler]).history["loss"] == [sum(own) + 0.5]
    if regularizer is None:
        assert by_path(model) == {"head/kernel": 0.5}
    else:
        with pytest.raises(ValueError, match=message):
            penalties(model)
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, verbose=0, callbacks=[tfk.RegularizationScheduler(lambda epoch: 0.25)])


def with_hidden(*regularizers):
    hidden = [layers.Dense(2, kernel_regularizer=one, name=f"hidden{i}") for i, one in enumerate(regularizers)]
    model = tf_keras.Sequential([tf_keras.Sequential(hidden, name="block"), layers.Dense(1, name="head")])
    model.build((None, 2))
    return model


def test_warning_of_regularizers_from_before_the_import_lists_the_layers(builtin):
    model = with_hidden(*(builtin.L2(0.1) for _ in range(7)))
    model.layers[-1].activity_regularizer = builtin.L1(0.1)
    listed = "^There are built-in .* of tf_keras in 'block/hidden0', .*, 'block/hidden4', …, because .* Import "
    with pytest.warns(UserWarning, match=listed) as caught:
        penalties(model)
    with pytest.warns(UserWarning, match=listed) as again:
        set_regularizers(model, bias_regularizer="l2")
    assert [one.filename for one in (*caught, *again)] == [__file__] * 2


def test_set_regularizers_warns_of_those_that_stay(builtin):
    model = with_hidden(builtin.L2(0.1), builtin.OrthogonalRegularizer(0.1))
    before = state(model)
    with pytest.raises(UserWarning, match="in 'block/hidden1', because "):  # warnings are errors in these tests
        set_regularizers(model, kernel_regularizer="l2", where=only("hidden0"))
    assert state(model) == before
    set_regularizers(model, kernel_regularizer="l2")
    with pytest.warns(UserWarning, match="in 'head', because "):
        set_regularizers(model, kernel_regularizer=builtin.L2(0.1), where=only("head"))
