"""`set_regularizers` and `penalties`, against models rebuilt through their configs and sums computed by hand."""

import json
import textwrap
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from libraries import needs_keras3
from tf_keras import layers

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, OrthogonalRegularizer, _keras, penalties, serialize, set_regularizers

# tf_keras warns of its own `.h5` format, which users still have.
h5_warning = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def sequential():
    return tf_keras.Sequential(
        [layers.Dense(3, activation="relu", name="hidden"), layers.Dense(2, name="head")], name="sequential"
    )


def convolutional():
    x = inputs = tf_keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.PReLU(name="prelu")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    x = layers.Flatten()(x)
    return tf_keras.Model(inputs, layers.Dense(2, name="head")(x))


def nested():
    inputs = tf_keras.Input((4,))
    block = tf_keras.Sequential([layers.Dense(4, name="dense"), layers.Dense(3, name="out")], name="block1")
    block.build((None, 4))
    return tf_keras.Model(inputs, layers.Dense(2, name="dense")(block(inputs)))


def shared():
    inputs = tf_keras.Input((4,))
    dense = layers.Dense(4, name="shared")
    return tf_keras.Model(inputs, layers.Dense(2, name="head")(dense(dense(inputs))))


def recurrent():
    x = inputs = tf_keras.Input((5, 3))
    x = layers.LSTM(2, return_sequences=True, name="lstm")(x)
    x = layers.GRU(2, return_sequences=True, name="gru")(x)
    x = layers.RNN([layers.SimpleRNNCell(2), layers.LSTMCell(2)], return_sequences=True, name="stack")(x)
    x = layers.TimeDistributed(layers.Dense(2, name="dense"), name="distributed")(x)
    return tf_keras.Model(inputs, layers.SimpleRNN(2, name="simple")(x))


def lstm():
    return tf_keras.Sequential([tf_keras.Input((3, 2)), layers.LSTM(2, name="lstm")])


def bidirectional():
    x = inputs = tf_keras.Input((5, 3))
    x = layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True, name="both"), name="both")(x)
    backward = layers.SimpleRNN(2, go_backwards=True, name="second")
    x = layers.Bidirectional(layers.SimpleRNN(2, name="first"), backward_layer=backward, name="own")(x)
    return tf_keras.Model(inputs, x)


def convlstm():
    inputs = tf_keras.Input((2, 4, 4, 1))
    return tf_keras.Model(inputs, layers.Flatten()(layers.ConvLSTM2D(2, 3, name="convlstm")(inputs)))


def attention():
    inputs = tf_keras.Input((5,))
    x = layers.Embedding(7, 4, name="embedding")(inputs)
    x = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d", name="einsum")(x)
    return tf_keras.Model(inputs, layers.LayerNormalization(name="norm")(x))


@tf_keras.saving.register_keras_serializable("tests")
class Subclassed(tf_keras.Model):
    """Two blocks in a list, of layers whose names are the same, and a loss of the user's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(4, name="dense"), layers.Dense(2, name="dense")]
        self.add_loss(lambda: tf.constant(7.0))

    def call(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


ALL = (sequential, convolutional, nested, shared, recurrent, bidirectional, convlstm, attention)
SHAPES = {sequential: (4,), Subclassed: (4,)}
KEYWORDS = (
    *("kernel_regularizer", "bias_regularizer", "depthwise_regularizer", "pointwise_regularizer"),
    *("recurrent_regularizer", "embeddings_regularizer", "gamma_regularizer", "beta_regularizer", "alpha_regularizer"),
)


def built(make):
    """A model with every weight, biases too, at random."""
    tf_keras.utils.set_random_seed(0)
    model = make()
    if not model.built:
        model.build((None, *SHAPES[make]))
    random = np.random.default_rng(0)
    model.set_weights([random.normal(scale=0.5, size=weight.shape) for weight in model.get_weights()])
    return model


def data(model, count=8):
    random = np.random.default_rng(1)
    shape = getattr(model, "input_shape", (None, 4))[1:]
    if any(isinstance(layer, layers.Embedding) for layer in model.layers):
        return random.integers(0, 7, size=(count, *shape))
    return random.normal(size=(count, *shape)).astype("float32")


def rebuilt(model, **regularizers):
    """The same model through its config, in which each of the keywords is written wherever it stands."""

    def walk(config):
        if isinstance(config, dict):
            changed = {key: serialize(regularizers[key]) for key in config if key in regularizers}
            return {**{key: walk(value) for key, value in config.items()}, **changed}
        return [walk(value) for value in config] if isinstance(config, (list, tuple)) else config

    other = type(model).from_config(walk(model.get_config()))
    other.set_weights(model.get_weights())
    return other


def values(model):
    return np.array([float(loss) for loss in model.losses])


def present(model):
    """The weight keywords that change something, found by the package's own error."""
    with pytest.raises(ValueError, match="would change nothing") as caught:
        set_regularizers(model, no_regularizer=None)
    listed = str(caught.value).split("Expected one of: ")[1].rstrip(".").split(", ")
    return [keyword for keyword in listed if keyword != "activity_regularizer"]


def saved_and_loaded(model, suffix, folder):
    model.save(folder / f"model{suffix}")
    return tf_keras.models.load_model(folder / f"model{suffix}")


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def tracked(obj):
    """What TensorFlow and Keras keep beside an attribute: what checkpoints hold, and how often a value is held."""
    obj._maybe_initialize_trackable()
    found = [(name, id(child)) for name, child in obj._self_unconditional_checkpoint_dependencies]
    found += sorted((name, id(child)) for name, child in obj._self_unconditional_dependency_names.items())
    found += sorted((id(value), count) for value, count in obj._obj_reference_counts.items())
    return found + [id(child) for child in obj._self_tracked_trackables]


def state(model):
    """All that a failing call must leave alone."""
    found = [json.dumps(model.get_config(), default=str), model.train_function, model.test_function]
    for layer in model._flatten_layers():
        found += [
            list(map(id, layer._callable_losses)),
            list(map(id, layer._losses)),
            list(map(id, layer._eager_losses)),
        ]
        found += [id(value) for name, value in sorted(vars(layer).items()) if name.endswith("_regularizer")]
        found += tracked(layer)
    return found


class TestSetRegularizers:
    @pytest.mark.parametrize("make", ALL)
    @pytest.mark.light(make=[sequential, nested, recurrent, attention])
    def test_equals_rebuild(self, make):
        model = built(make)
        regularizers = {keyword: L2(0.1 * (i + 1)) for i, keyword in enumerate(KEYWORDS) if keyword in present(model)}
        truth = rebuilt(model, **regularizers)
        paths = set_regularizers(model, **regularizers)
        assert len(paths) == len(set(paths)) == len(truth.losses) > 0
        np.testing.assert_allclose(values(model), values(truth), rtol=1e-6)

    @pytest.mark.parametrize("make", ALL)
    @pytest.mark.light(make=[sequential, nested, attention])
    def test_set_replace_remove(self, make):
        model = built(make)
        kernels = set_regularizers(model, kernel_regularizer="l1")
        assert set_regularizers(model, kernel_regularizer={"class_name": "L2", "config": {"l2": 0.5}}) == kernels
        np.testing.assert_allclose(values(model), values(rebuilt(model, kernel_regularizer=L2(0.5))), rtol=1e-6)
        bias = set_regularizers(model, bias_regularizer=L1(0.5))
        truth = rebuilt(model, kernel_regularizer=L2(0.5), bias_regularizer=L1(0.5))
        np.testing.assert_allclose(values(model), values(truth), rtol=1e-6)
        assert set_regularizers(model, kernel_regularizer=None) == kernels
        np.testing.assert_allclose(values(model), values(rebuilt(model, bias_regularizer=L1(0.5))), rtol=1e-6)
        assert set_regularizers(model, bias_regularizer=None, kernel_regularizer=None) == bias
        assert model.losses == []
        assert set_regularizers(model, kernel_regularizer=None) == []

    @h5_warning
    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    @pytest.mark.parametrize("make", ALL)
    @pytest.mark.light(suffix=[".keras"], make=[sequential, nested, recurrent])
    def test_file(self, make, suffix, tmp_path):
        model = built(make)
        set_regularizers(model, **{keyword: L2(0.1) for keyword in present(model)})
        np.testing.assert_allclose(values(saved_and_loaded(model, suffix, tmp_path)), values(model), rtol=1e-6)
        set_regularizers(model, **dict.fromkeys(present(model)))
        assert saved_and_loaded(model, suffix, tmp_path).losses == []

    @pytest.mark.parametrize(
        "make",
        [nested, attention, *(pytest.param(make, marks=pytest.mark.heavy) for make in (convolutional, recurrent))],
    )
    @pytest.mark.light(make=[nested])
    def test_saved_model(self, make, tmp_path):
        model = built(make)
        set_regularizers(model, **{keyword: L2(0.1) for keyword in present(model)})
        loaded = saved_and_loaded(model, "", tmp_path)
        assert len(loaded.losses) == len(model.losses)
        np.testing.assert_allclose(sum(values(loaded)), sum(values(model)), rtol=1e-6)

    @pytest.mark.parametrize("make", [sequential, nested, shared, lstm, Subclassed])
    @pytest.mark.light(make=[sequential])
    def test_fit(self, make):
        """A traced step is traced anew: equal to a model that never knew anything else, optimizer state included."""
        model, x = built(make), None
        x = data(model)
        y = np.zeros((len(x), 2))
        model.compile(tf_keras.optimizers.Adam(0.1), "mse")
        model.fit(x, y, verbose=0)
        model.evaluate(x, y, verbose=0)
        weights, slots = model.get_weights(), [v.numpy() for v in model.optimizer.variables]

        set_regularizers(model, kernel_regularizer=L2(0.3))
        np.testing.assert_array_equal(flat(model.get_weights()), flat(weights))
        np.testing.assert_array_equal(flat(v.numpy() for v in model.optimizer.variables), flat(slots))
        truth = built(make)
        if make is Subclassed:
            for block in truth.blocks:
                truth.add_loss(lambda kernel=block.kernel: L2(0.3)(kernel))
        else:
            truth = rebuilt(truth, kernel_regularizer=L2(0.3))
        truth.set_weights(weights)
        truth.compile(tf_keras.optimizers.Adam(0.1), "mse")
        truth.optimizer.build(truth.trainable_variables)
        for variable, value in zip(truth.optimizer.variables, slots, strict=True):
            variable.assign(value)
        for other in (model, truth):
            other.fit(x, y, verbose=0)
        np.testing.assert_allclose(flat(model.get_weights()), flat(truth.get_weights()), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0), truth.evaluate(x, y, verbose=0), rtol=1e-5)

        set_regularizers(model, kernel_regularizer=None)
        own = 7.0 if make is Subclassed else 0.0
        mse = np.mean(np.square(model.predict(x, verbose=0) - y))
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0), mse + own, rtol=1e-5)

    def test_where(self):
        model = built(convolutional)
        paths = set_regularizers(model, kernel_regularizer="l2", where=lambda layer: isinstance(layer, layers.Conv2D))
        assert paths == ["conv/kernel"]  # a DepthwiseConv2D is a Conv2D, and has no kernel
        assert len(model.losses) == 1
        assert model.get_layer("depthwise").kernel_regularizer is None

    def test_where_asks_the_layer_around_too(self):
        model = built(recurrent)
        for name in ("lstm", "simple"):
            model.get_layer(name).cell._name = f"cell_of_{name}"  # Keras names the cells of the stack like these
        stack = model.get_layer("stack").cell
        cells = [f"stack/{stack.name}/{cell.name}/kernel" for cell in stack.cells]
        expected = {
            "lstm": ["lstm/cell_of_lstm/kernel"],
            "stack": cells,
            stack.name: cells,
            stack.cells[0].name: cells[:1],
            "distributed": ["distributed/dense/kernel"],
            "dense": ["distributed/dense/kernel"],
        }
        for name, paths in expected.items():
            assert set_regularizers(model, kernel_regularizer="l2", where=only(name)) == paths

    def test_where_is_not_asked_for_the_layers_of_a_nested_model(self):
        model = built(nested)
        with pytest.raises(ValueError, match="none, for there is no weight"):
            set_regularizers(model, kernel_regularizer="l2", where=lambda layer: layer.name == "block1")

    @h5_warning
    @pytest.mark.parametrize("suffix", [".keras", ".h5", pytest.param("", marks=pytest.mark.heavy)])
    def test_one_direction(self, suffix, tmp_path):
        model = built(bidirectional)
        one = ("forward_first", "backward_both")
        paths = set_regularizers(model, kernel_regularizer=L2(0.1), where=lambda layer: layer.name in one)
        assert [path.split("/")[:2] for path in paths] == [["both", "backward_both"], ["own", "forward_first"]]
        loaded = saved_and_loaded(model, suffix, tmp_path)
        np.testing.assert_allclose(values(loaded), values(model), rtol=1e-6)
        x = data(model)
        np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
        assert [w.name for w in loaded.weights] == [w.name for w in model.weights]

    def test_frozen_layer(self):
        """tf_keras penalizes frozen layers like others."""
        model = built(sequential)
        model.layers[0].trainable = False
        set_regularizers(model, kernel_regularizer=L2(0.1))
        np.testing.assert_allclose(values(model), values(rebuilt(model, kernel_regularizer=L2(0.1))), rtol=1e-6)
        assert len(model.losses) == 2

    def test_subclassed(self):
        model = built(Subclassed)
        assert set_regularizers(model, kernel_regularizer=L2(0.5)) == ["dense/kernel", "dense_1/kernel"]
        squares = [0.5 * np.sum(np.square(block.kernel.numpy())) for block in model.blocks]
        assert sum(values(model)) == pytest.approx(7.0 + sum(squares), rel=1e-6)
        set_regularizers(model, kernel_regularizer=None)
        assert values(model).tolist() == [7.0]

    def test_own_loss_of_a_layer_stays(self):
        model = built(sequential)
        layer = model.layers[0]
        layer.add_loss(lambda: 3.0 * tf.reduce_sum(layer.kernel))
        own = values(model)
        set_regularizers(model, kernel_regularizer="l2")
        assert len(model.losses) == 3
        set_regularizers(model, kernel_regularizer=None)
        np.testing.assert_array_equal(values(model), own)

    def test_attribute_set_by_hand(self):
        """What users try first changes nothing; the attribute is taken back all the same."""
        model = built(sequential)
        model.layers[0].kernel_regularizer = L2(0.1)
        assert model.losses == []
        assert set_regularizers(model, kernel_regularizer=None) == ["hidden/kernel"]
        assert model.layers[0].kernel_regularizer is None

    @pytest.mark.filterwarnings("ignore:Built-in regularizers:UserWarning")
    @pytest.mark.parametrize("make", [attention, bidirectional])
    def test_removed_factor_is_in_no_file(self, make, builtin, tmp_path):
        """Keras goes on tracking what is replaced by None, or by a regularizer that is not tracked."""
        clean, model = built(make), built(make)
        tf.train.Checkpoint(clean).write(str(tmp_path / "clean"))
        for keyword in ("kernel_regularizer", "activity_regularizer"):
            for replacement in (None, builtin.L2(0.5)):
                set_regularizers(model, **{keyword: L1(tf.Variable(0.5, trainable=False))})
                set_regularizers(model, **{keyword: replacement})
                set_regularizers(model, **{keyword: None})
        tf.train.Checkpoint(model).write(str(tmp_path / "removed"))
        tf.train.Checkpoint(model).read(str(tmp_path / "clean")).assert_consumed()
        tf.train.Checkpoint(clean).read(str(tmp_path / "removed")).assert_consumed()

    def test_removed_factor_is_not_in_a_saved_model(self, tmp_path):
        model = built(attention)
        set_regularizers(model, kernel_regularizer=L1(tf.Variable(0.5, trainable=False)))
        set_regularizers(model, kernel_regularizer=None)
        model.save(tmp_path / "model", save_format="tf")
        found = tf.train.list_variables(str(tmp_path / "model" / "variables" / "variables"))
        assert not [name for name, _ in found if "regularizer" in name]

    def test_factor_held_by_another_attribute_stays_tracked(self):
        model = built(sequential)
        layer = model.layers[0]
        layer._kernel_regularizer = shared = L1(tf.Variable(0.5, trainable=False))
        set_regularizers(model, kernel_regularizer=shared, bias_regularizer=shared)
        set_regularizers(model, kernel_regularizer=None)
        children = layer._trackable_children()
        assert children["_kernel_regularizer"] is children["bias_regularizer"] is shared
        assert "kernel_regularizer" not in children

    def test_factor_removed_by_hand(self):
        model = built(sequential)
        layer = model.layers[0]
        layer.kernel_regularizer = L1(tf.Variable(0.5, trainable=False))
        layer.kernel_regularizer = None
        assert set_regularizers(model, kernel_regularizer=None) == ["hidden/kernel"]
        assert "kernel_regularizer" not in layer._trackable_children()

    def test_nested_model_that_was_traced(self):
        model = built(nested)
        block = model.get_layer("block1")
        block.compile("sgd", "mse")
        block.evaluate(np.zeros((1, 4)), np.zeros((1, 3)), verbose=0)
        set_regularizers(model, kernel_regularizer=L2(1.0))
        loss = block.evaluate(np.zeros((1, 4)), block(np.zeros((1, 4))), verbose=0)
        assert loss == pytest.approx(sum(values(block)), rel=1e-6)

    def test_mixed_precision(self):
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
        try:
            model = built(sequential)
            set_regularizers(model, kernel_regularizer=L2(0.1))
            np.testing.assert_allclose(values(model), values(rebuilt(model, kernel_regularizer=L2(0.1))), rtol=1e-6)
        finally:
            tf_keras.mixed_precision.set_global_policy("float32")

    def test_partitioned_weight(self):
        """One penalty for each shard, as tf_keras has it."""
        sharded_variable = pytest.importorskip("tensorflow.python.distribute.sharded_variable")
        model = built(sequential)
        layer = model.layers[0]
        shards = [tf.Variable(tf.ones([2, 3]), name=f"hidden/kernel/part_{i}") for i in range(2)]
        layer.kernel = sharded_variable.ShardedVariable(shards, name="hidden/kernel")
        paths = set_regularizers(model, kernel_regularizer=L2(0.5), where=lambda other: other is layer)
        assert paths == list(penalties(model)) == ["hidden/kernel/part_0", "hidden/kernel/part_1"]
        assert values(model).tolist() == [3.0, 3.0]
        set_regularizers(model, kernel_regularizer=None)
        assert model.losses == []

    def test_layer_of_ones_own(self):
        class Own(layers.Layer):
            def __init__(self):
                super().__init__(name="own")
                self.table_regularizer = None

            def build(self, shape):
                self.table = self.add_weight(name="x/rows", shape=(shape[-1], 2))

            def call(self, inputs):
                return tf.matmul(inputs, self.table)

        model = tf_keras.Sequential([Own()])
        model.build((None, 3))
        assert set_regularizers(model, table_regularizer=L2(1.0)) == ["own/rows"]
        np.testing.assert_allclose(values(model), [np.sum(np.square(model.get_weights()[0]))], rtol=1e-6)

    @pytest.mark.heavy
    def test_mobilenet(self, record_property):
        model = tf_keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))
        truth = rebuilt(model, kernel_regularizer=L2(1e-4))
        start = time.perf_counter()
        paths = set_regularizers(model, kernel_regularizer=L2(1e-4))
        record_property("milliseconds", round(1000 * (time.perf_counter() - start), 1))
        assert len(paths) == len(model.losses) == len(truth.losses) == 36
        np.testing.assert_allclose(sum(values(model)), sum(values(truth)), rtol=1e-6)
        assert list(penalties(model)) == paths


class TestActivityRegularizer:
    @pytest.mark.parametrize("make", [sequential, convolutional, nested, shared, recurrent, bidirectional, attention])
    @pytest.mark.light(make=[sequential, nested])
    def test_equals_rebuild(self, make):
        model = built(make)
        x = data(model)
        truth = rebuilt(model, activity_regularizer=L2(0.1))
        set_regularizers(model, activity_regularizer=L2(0.1))
        for other in (model, truth):
            other(x)
        assert len(model.losses) == len(truth.losses) > 0
        np.testing.assert_allclose(values(model), values(truth), rtol=1e-5)

    @pytest.mark.parametrize("make", [sequential, nested, shared, lstm, bidirectional, attention])
    @pytest.mark.light(make=[sequential, nested, attention])
    def test_given_at_construction(self, make):
        """Its symbolic loss goes with it, or `fit` would meet a tensor of another graph."""
        model = rebuilt(built(make), activity_regularizer=L2(0.1))
        x = data(model)
        paths = set_regularizers(model, activity_regularizer=None)
        assert paths
        assert model.losses == []
        y = model(x)
        assert model.losses == []
        model.compile("sgd", "mse")
        assert model.evaluate(x, y, verbose=0) == pytest.approx(0.0, abs=1e-6)
        assert set_regularizers(model, activity_regularizer=L1(0.2)) == paths
        truth = rebuilt(model, activity_regularizer=L1(0.2))
        truth(x)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(sum(values(truth)), rel=1e-4)

    def test_paths(self):
        model = built(nested)
        assert set_regularizers(model, activity_regularizer="l2") == [
            *("block1/dense/activity", "block1/out/activity", "dense/activity")
        ]

    def test_loss_of_the_last_call_goes(self):
        model = built(Subclassed)
        set_regularizers(model, activity_regularizer="l2")
        model(data(model))
        assert len(model.losses) == 3
        set_regularizers(model, activity_regularizer=None)
        assert values(model).tolist() == [7.0]

    @h5_warning
    @pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
    def test_saved(self, suffix, tmp_path):
        model = built(nested)
        x = data(model)
        set_regularizers(model, activity_regularizer=L2(0.1))
        loaded = saved_and_loaded(model, suffix, tmp_path)
        for other in (model, loaded):
            other.compile("sgd", "mse")
        y = np.zeros((len(x), 2))
        assert loaded.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)

    def test_only_layers_that_save_it(self):
        model = built(attention)
        with pytest.raises(ValueError, match="would change nothing"):
            set_regularizers(model, activity_regularizer="l2", where=lambda layer: layer.name in ("einsum", "norm"))


class Unknown(layers.Layer):
    """A layer whose class a program that loads it lacks, for it is registered nowhere; and a loss of its own."""

    def __init__(self, kernel_regularizer=None, activity_regularizer=None, **kwargs):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.kernel_regularizer = kernel_regularizer

    def build(self, shape):
        self.bias = self.add_weight("bias", (2,), initializer="ones")
        self.kernel = self.add_weight("kernel", (shape[-1], 2), initializer="ones", regularizer=self.kernel_regularizer)
        self.add_loss(lambda: 7.0 * tf.reduce_sum(self.kernel))

    def call(self, inputs):
        return inputs @ self.kernel + self.bias

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_regularizer": serialize(self.kernel_regularizer),
            "activity_regularizer": serialize(self.activity_regularizer),
        }


class Around(layers.Layer):
    """A layer with another inside, just as unknown."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2, activity_regularizer="l2", name="dense")

    def call(self, inputs):
        return self.dense(inputs)


class TestRevivedLayer:
    """A layer that Keras has made from the graphs of a SavedModel."""

    def revived(self, layer, folder):
        inputs = tf_keras.Input((4,))
        model = tf_keras.Model(inputs, layers.Dense(1, kernel_initializer="ones", name="head")(layer(inputs)))
        return saved_and_loaded(model, "", folder)

    @pytest.mark.parametrize("kind", ["builtin", "ours", "live"])
    @pytest.mark.light(kind=["ours"])
    def test_set_replace_remove(self, kind, builtin, tmp_path):
        factor = tf.Variable(0.5, trainable=False)
        regularizer = {"builtin": builtin.L2(0.5), "ours": L2(0.5), "live": L2(factor)}[kind]
        model = self.revived(Unknown(regularizer, name="unknown"), tmp_path / "first")
        layer = model.get_layer("unknown")
        assert not isinstance(layer, Unknown)

        def found(model):
            return {path: float(value) for path, value in penalties(model).items()}, sum(values(model))

        assert found(model) == ({"unknown/kernel": 4.0}, 56.0 + 4.0)
        paths = set_regularizers(model, kernel_regularizer=L2(1.0))
        assert paths == ["unknown/kernel", "head/kernel"]
        expected = {"unknown/kernel": 8.0, "head/kernel": 2.0}, 56.0 + 8.0 + 2.0
        assert found(model) == expected
        assert found(saved_and_loaded(model, "", tmp_path / "second")) == expected
        model.save(tmp_path / "third", save_format="tf")
        with tf_keras.saving.custom_object_scope({"Unknown": Unknown}):
            known = tf_keras.models.load_model(tmp_path / "third")
        assert isinstance(known.get_layer("unknown"), Unknown)
        assert found(known) == expected
        assert set_regularizers(model, kernel_regularizer=None) == paths
        assert found(model) == ({}, 56.0)
        assert layer.get_config()["kernel_regularizer"] is None

    def test_nowhere_else(self, tmp_path):
        model = self.revived(Unknown(name="unknown"), tmp_path)
        assert set_regularizers(model, kernel_regularizer="l2", where=only("unknown")) == ["unknown/kernel"]
        with pytest.raises(ValueError, match=r"Expected one of: activity_regularizer, kernel_regularizer\."):
            set_regularizers(model, beta_regularizer="l2", where=only("unknown"))

    @pytest.mark.parametrize("regularizer", ["l1", None])
    @pytest.mark.parametrize(
        "make", [lambda: Unknown(activity_regularizer=L2(0.1), name="outer"), lambda: Around(name="outer")]
    )
    def test_activity(self, make, regularizer, tmp_path):
        """What its graphs have made of the output stays in them."""
        model = self.revived(make(), tmp_path)
        before = state(model)
        with pytest.raises(ValueError, match=r"'outer(/dense)?/activity' cannot be changed.*'outer'.*custom_objects"):
            set_regularizers(model, kernel_regularizer="l2", activity_regularizer=regularizer)
        assert state(model) == before
        assert set_regularizers(model, activity_regularizer="l2", where=only("head")) == ["head/activity"]


class Unsaved(L2):
    def get_config(self):
        raise NotImplementedError("no config")


def only(*names):
    return lambda layer: layer.name in names


FAILURES = {
    "unknown": (
        sequential,
        {"kernel": "l2"},
        r"`kernel` would.*one of: activity_reg.*, bias_reg.*, kernel_regularizer\.",
    ),
    "absent": (
        sequential,
        {"gamma_regularizer": "l2"},
        r"`gamma_regularizer` would change nothing.*kernel_regularizer",
    ),
    "second_absent": (sequential, {"kernel_regularizer": "l2", "gamma_regularizer": "l2"}, "`gamma_regularizer` would"),
    "passed_over": (
        convolutional,
        {"kernel_regularizer": "l2", "where": only("depthwise")},
        "passes `where`.*depthwise_regularizer",
    ),
    "nowhere": (sequential, {"kernel_regularizer": "l2", "where": only("none")}, "`where` passes for no layer"),
    "no_keyword": (sequential, {}, "at least one keyword"),
    "where": (sequential, {"kernel_regularizer": "l2", "where": "hidden"}, "argument `where`.*'hidden'"),
    "where_class": (
        sequential,
        {"kernel_regularizer": "l2", "where": layers.Dense},
        r"argument `where`.*lambda layer: isinstance\(layer, Dense\)",
    ),
    "where_layer": (
        sequential,
        {"kernel_regularizer": "l2", "where": layers.Dense(2, name="hidden")},
        r"argument `where`.*`lambda layer: layer.name == 'hidden'`",
    ),
    "keyword_before_value": (sequential, {"layer": "hidden", "kernel_regularizer": "l2"}, "`layer` would change"),
    "identifier": (sequential, {"kernel_regularizer": "l3"}, "Unknown regularizer: 'l3'"),
    "rank": (
        sequential,
        {"kernel_regularizer": "l2", "bias_regularizer": OrthogonalRegularizer()},
        r"cannot be the `bias_regularizer` of 'hidden/bias', of shape \(3,\).*rank 2",
    ),
    "raises": (sequential, {"kernel_regularizer": lambda x: 1 / 0}, "'hidden/kernel'.*ZeroDivisionError"),
    "not_scalar": (sequential, {"kernel_regularizer": tf.square}, r"'hidden/kernel'.*scalar.*\(4, 3\)"),
    "integer": (sequential, {"kernel_regularizer": tf.size}, "'hidden/kernel'.*scalar.*int32"),
    "none": (sequential, {"kernel_regularizer": lambda x: None}, "'hidden/kernel'"),
    "activity": (sequential, {"activity_regularizer": tf.abs}, r"'hidden/activity'.*scalar.*\(1, 3\)"),
    "projection": (attention, {"kernel_regularizer": "l2", "where": only("query")}, "one `kernel_regularizer` for all"),
    "unsaved": (bidirectional, {"kernel_regularizer": Unsaved(0.1)}, "no config"),
}


class TestFailure:
    @pytest.mark.parametrize("case", FAILURES)
    def test_changes_nothing(self, case):
        make, arguments, message = FAILURES[case]
        model = built(make)
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
    def test_interrupted(self, make, monkeypatch):
        def interrupt(model):
            raise KeyboardInterrupt

        model = built(make)
        set_regularizers(model, kernel_regularizer=L1(tf.Variable(0.5, trainable=False)), activity_regularizer="l2")
        before = state(model)
        monkeypatch.setattr(_keras.training, "forget_traces", interrupt)
        for regularizer in (L1(tf.Variable(0.5, trainable=False)), None):
            with pytest.raises(KeyboardInterrupt):
                set_regularizers(model, kernel_regularizer=regularizer, activity_regularizer=regularizer)
            assert state(model) == before

    def test_other_internals_of_keras(self, monkeypatch):
        model = built(sequential)
        before = state(model)
        monkeypatch.setattr(_keras.layers, "_regularized_variable", lambda layer, loss: None)
        with pytest.raises(RuntimeError, match="supports tf-keras 2"):
            set_regularizers(model, kernel_regularizer="l2")
        assert state(model) == before

    @pytest.mark.parametrize("function", [penalties, lambda model: set_regularizers(model, kernel_regularizer="l2")])
    @pytest.mark.parametrize("make", [sequential, Subclassed])
    def test_not_built(self, function, make):
        with pytest.raises(ValueError, match=r"has no weights yet\. Call `model\.build"):
            function(make())

    def test_layer_not_built(self):
        model = Subclassed()
        model.blocks.append(layers.Dense(1, name="unused"))
        model.call = lambda inputs: model.blocks[1](model.blocks[0](inputs))
        model(np.zeros((1, 4)))
        with pytest.raises(ValueError, match="layer 'unused' has no weights yet"):
            set_regularizers(model, kernel_regularizer="l2")
        set_regularizers(model, kernel_regularizer="l2", where=only("dense"))
        assert len(penalties(model)) == 2

    @pytest.mark.parametrize("model", [None, "model", layers.Dense(1)])
    def test_not_a_model(self, model):
        with pytest.raises(TypeError, match="`set_regularizers` is for models of tf_keras"):
            set_regularizers(model, kernel_regularizer="l2")
        with pytest.raises(TypeError, match="`penalties` is for models of tf_keras or Keras 3"):
            penalties(model)


class TestPenalties:
    @pytest.mark.parametrize("make", ALL)
    def test_sums_to_losses(self, make):
        model = built(make)
        paths = set_regularizers(model, **{keyword: L2(0.1) for keyword in present(model)})
        found = penalties(model)
        assert sorted(found) == sorted(paths)
        np.testing.assert_allclose([float(value) for value in found.values()], values(model), rtol=1e-6)
        assert all(value.shape == () for value in found.values())

    def test_by_hand(self):
        model = built(nested)
        set_regularizers(model, kernel_regularizer=L2(0.5))
        kernels = [weight.numpy() for weight in model.weights if "kernel" in weight.name]
        found = penalties(model)
        assert list(found) == ["block1/dense/kernel", "block1/out/kernel", "dense/kernel"]
        squares = [0.5 * np.sum(np.square(kernel)) for kernel in kernels]
        np.testing.assert_allclose([float(value) for value in found.values()], squares, rtol=1e-6)

    def test_given_at_construction(self):
        model = rebuilt(built(shared), kernel_regularizer=L1(0.5))
        assert list(penalties(model)) == ["shared/kernel", "head/kernel"]

    def test_nothing_regularized(self):
        assert penalties(built(nested)) == {}

    def test_weights_of_one_name(self):
        class Own(layers.Layer):
            def build(self, shape):
                self.parts = [
                    self.add_weight(name="part", shape=(), regularizer=L2(i), initializer="ones") for i in (1, 2)
                ]

            def call(self, inputs):
                return inputs

        model = tf_keras.Sequential([Own(name="own")])
        model.build((None, 1))
        assert {path: float(value) for path, value in penalties(model).items()} == {"own/part": 1.0, "own/part_1": 2.0}

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_inside_a_function(self, jit_compile):
        model = built(nested)
        set_regularizers(model, kernel_regularizer=L2(0.5))

        @tf.function(jit_compile=jit_compile)
        def step():
            with tf.GradientTape() as tape:
                total = sum(penalties(model).values())
            return penalties(model), tape.gradient(total, model.get_layer("dense").kernel)

        found, gradient = step()
        assert list(found) == list(penalties(model))
        np.testing.assert_allclose([float(value) for value in found.values()], values(model), rtol=1e-6)
        np.testing.assert_allclose(gradient, model.get_layer("dense").kernel, rtol=1e-6)

    @pytest.mark.heavy
    def test_replicas_equal_one_device(self, run_python):
        """The loop of the docstring, on two replicas and on one device: virtual devices want a process of their own."""
        script = """
            import numpy as np, tensorflow as tf, tf_keras
            from tfk_regularizers import penalties, set_regularizers
            cpus = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
            random = np.random.default_rng(0)
            x, y = random.normal(size=(16, 4)).astype("f4"), random.normal(size=(16, 1)).astype("f4")

            def trained(strategy):
                tf_keras.utils.set_random_seed(0)
                with strategy.scope():
                    model = tf_keras.Sequential([tf_keras.layers.Dense(8, activation="tanh"), tf_keras.layers.Dense(1)])
                    model.build((None, 4))
                    optimizer = tf_keras.optimizers.SGD(0.1)
                set_regularizers(model, kernel_regularizer="l2", bias_regularizer="l1")

                def step(x, y):
                    with tf.GradientTape() as tape:
                        errors = tf_keras.losses.mean_squared_error(y, model(x, training=True))
                        loss = tf.nn.compute_average_loss(errors)
                        loss += sum(penalties(model).values()) / strategy.num_replicas_in_sync
                    gradients = tape.gradient(loss, model.trainable_variables)
                    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
                    return loss

                @tf.function
                def distributed(batch):
                    return strategy.reduce("SUM", strategy.run(step, args=batch), axis=None)

                batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
                batches = strategy.experimental_distribute_dataset(batches)
                losses = [float(distributed(batch)) for _ in range(3) for batch in batches]
                return losses, np.concatenate([w.ravel() for w in model.get_weights()])

            one = trained(tf.distribute.get_strategy())
            two = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
            np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
            np.testing.assert_allclose(one[1], two[1], rtol=1e-5, atol=1e-6)
        """
        run_python("-c", textwrap.dedent(script))


@pytest.mark.heavy
def test_tensorflow_1_graphs(run_python):
    """`compile` adds up the losses there: the same weights as of models that were built so."""
    script = """
        import numpy as np, tensorflow as tf, tf_keras
        from tfk_regularizers import L2, penalties, set_regularizers
        tf.compat.v1.disable_eager_execution()
        random = np.random.default_rng(0)
        x, y = random.normal(size=(16, 4)), random.normal(size=(16, 2))

        def make(regularizer=None, **arguments):
            dense = tf_keras.layers.Dense
            hidden = dense(3, kernel_regularizer=regularizer, name="hidden", **arguments)
            model = tf_keras.Sequential([tf_keras.Input((4,)), hidden, dense(2, kernel_regularizer=regularizer)])
            model.compile(tf_keras.optimizers.legacy.SGD(0.1, momentum=0.5), "mse", metrics=["mae"])
            return model

        def trained(model):
            model.fit(x, y, epochs=2, shuffle=False, verbose=0)
            return np.concatenate([weight.ravel() for weight in model.get_weights()])

        model = make()
        trained(model)
        assert len(set_regularizers(model, kernel_regularizer=L2(0.1))) == len(model.losses) == 2
        truth = make(L2(0.1))
        truth.set_weights(model.get_weights())
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0), truth.evaluate(x, y, verbose=0), rtol=1e-5)
        penalty = sum(tf_keras.backend.get_value(value) for value in penalties(model).values())
        mse = np.mean((model.predict(x) - y) ** 2)
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0)[0], mse + penalty, rtol=1e-5)
        before = trained(model)
        assert not np.allclose(before, trained(model))
        set_regularizers(model, kernel_regularizer=None)
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0)[0], np.mean((model.predict(x) - y) ** 2), rtol=1e-5)

        model = make(activity_regularizer="l2")
        set_regularizers(model, activity_regularizer=None)
        np.testing.assert_allclose(model.evaluate(x, y, verbose=0)[0], np.mean((model.predict(x) - y) ** 2), rtol=1e-5)
        try:
            set_regularizers(model, activity_regularizer="l2", kernel_regularizer="l2")
        except ValueError as error:
            assert "'hidden/activity' cannot be set in a TensorFlow 1 graph" in str(error), error
        else:
            raise AssertionError("no error")
        assert model.losses == []
    """
    run_python("-c", textwrap.dedent(script))


@needs_keras3
class TestKeras3:
    @pytest.fixture
    def model(self):
        keras = tf.keras
        block = keras.Sequential([keras.layers.Dense(3, kernel_regularizer=L2(0.5), name="dense")], name="block1")
        recurrent = keras.layers.LSTM(2, recurrent_regularizer=L1(0.5), name="lstm")
        model = keras.Sequential(
            [keras.Input((4, 2)), block, recurrent, keras.layers.Dense(1, bias_regularizer=L2(1.0), name="dense")]
        )
        model.layers[-1].bias.assign([2.0])
        return model

    def test_sums_to_losses(self, model):
        found = penalties(model)
        assert list(found) == ["block1/dense/kernel", "lstm/lstm_cell/recurrent_kernel", "dense/bias"]
        assert float(found["dense/bias"]) == 4.0
        assert float(sum(found.values())) == pytest.approx(float(sum(model.losses)), rel=1e-6)
        np.testing.assert_allclose(tf.function(lambda: sum(penalties(model).values()))(), sum(model.losses), rtol=1e-6)

    def test_frozen_layer(self, model):
        model.get_layer("block1").trainable = False
        assert list(penalties(model)) == ["lstm/lstm_cell/recurrent_kernel", "dense/bias"]
        assert float(sum(penalties(model).values())) == pytest.approx(float(sum(model.losses)), rel=1e-6)

    def test_not_built(self):
        with pytest.raises(ValueError, match="has no weights yet"):
            penalties(tf.keras.Sequential([tf.keras.layers.Dense(1)]))

    def test_set_regularizers(self, model):
        with pytest.raises(TypeError, match=r"is for models of tf_keras\. Received: .* of type keras\."):
            set_regularizers(model, kernel_regularizer="l2")


def test_a_weight_in_whose_place_a_wrapper_has_put_a_tensor():
    """As wrappers that quantize do: the variable is still among the weights, and still penalized."""
    model = sequential()
    model.build((None, 4))
    set_regularizers(model, kernel_regularizer=L2(0.1))
    hidden = model.layers[0]
    vars(hidden)["kernel"] = tf.identity(hidden.kernel)
    assert set_regularizers(model, kernel_regularizer=None) == ["hidden/kernel", "head/kernel"]
    assert model.losses == []
    assert set_regularizers(model, kernel_regularizer=L2(0.1)) == ["hidden/kernel", "head/kernel"]
    assert list(penalties(model)) == ["hidden/kernel", "head/kernel"]


class TestFromBeforeTheImport:
    """Layers with built-in regularizers, told of once."""

    @staticmethod
    def model(*regularizers):
        hidden = [
            layers.Dense(2, kernel_regularizer=regularizer, name=f"hidden{number}")
            for number, regularizer in enumerate(regularizers)
        ]
        model = tf_keras.Sequential([tf_keras.Sequential(hidden, name="block"), layers.Dense(1, name="head")])
        model.build((None, 2))
        return model

    def test_penalties_name_the_layers_once(self, builtin):
        model = self.model(*(builtin.L2(0.1) for _ in range(7)))
        model.layers[-1].activity_regularizer = builtin.L1(0.1)
        with pytest.warns(UserWarning, match=r"^Built-in regularizers") as caught:
            penalties(model)
        (warning,) = caught
        assert "'block/hidden0' (kernel_regularizer), 'block/hidden1'" in str(warning.message)
        assert "'block/hidden4' (kernel_regularizer) and 3 more. Import" in str(warning.message)
        assert warning.filename == __file__
        penalties(model)
        with pytest.warns(UserWarning, match=r"still in 'block/hidden0' \(kernel_regularizer\)\. "):
            penalties(self.model(builtin.L1L2(0.1)))

    def test_set_regularizers_tells_of_what_stays(self, builtin):
        model = self.model(builtin.L2(0.1), builtin.OrthogonalRegularizer(0.1))
        with pytest.warns(UserWarning, match=r"still in 'block/hidden1' \(kernel_regularizer\)\. "):
            set_regularizers(model, kernel_regularizer="l2", where=only("hidden0"))
        model = self.model(builtin.L2(0.1), builtin.L2(0.1))
        set_regularizers(model, kernel_regularizer="l2")
        with pytest.warns(UserWarning, match="still in 'head'"):
            set_regularizers(model, kernel_regularizer=builtin.L2(0.1), where=only("head"))

    def test_nothing_is_half_set_where_it_is_an_error(self, builtin):
        model = self.model(builtin.L2(0.1), builtin.L2(0.1))
        before = [layer.kernel_regularizer for layer in model.layers[0].layers], list(map(float, model.losses))
        for _ in range(2):
            with pytest.raises(UserWarning, match="still in"):
                set_regularizers(model, kernel_regularizer="l1", where=only("hidden0"))
        assert (
            [layer.kernel_regularizer for layer in model.layers[0].layers],
            list(map(float, model.losses)),
        ) == before

    def test_what_is_meant_as_it_is_is_not_told_of(self, builtin, restored):
        class Own(builtin.L2):
            def __call__(self, x):
                return 2.0 * super().__call__(x)

        class Ours(L2):
            pass

        class Renamed(builtin.L2):
            pass

        penalties(self.model(Own(0.1), Ours(0.1), "l1_l2", tf.reduce_sum, OrthogonalRegularizer()))
        with pytest.warns(UserWarning, match="still in 'block/hidden0'"):
            penalties(self.model(Renamed(0.1)))
        tfk.unregister()
        penalties(self.model(builtin.L2(0.1), "l2"))
