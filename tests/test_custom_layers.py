"""Custom layers: weights whose names differ from their keywords, wrappers, and layers that contain layers."""

import warnings

import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, penalties, set_regularizers


def by_path(model):
    return {path: float(value) for path, value in penalties(model).items()}


@tf_keras.saving.register_keras_serializable("tests")
class Gate(layers.Layer):
    """A layer with one keyword for two weights, and another, in a private attribute, for a weight of another name."""

    def __init__(self, gate_regularizer=None, shift_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.gate_regularizer = tf_keras.regularizers.get(gate_regularizer)
        self._shift_regularizer = tf_keras.regularizers.get(shift_regularizer)

    def build(self, shape):
        make = lambda name, regularizer: self.add_weight(  # noqa: E731
            name=name, shape=(shape[-1],), initializer="ones", regularizer=regularizer
        )
        self.left, self.right = make("gate_left", self.gate_regularizer), make("gate_right", self.gate_regularizer)
        self.offset = make("b", self._shift_regularizer)
        self.gate_mean = self.add_weight(name="gate_mean", shape=(3,), trainable=False, initializer="ones")

    def call(self, inputs):
        return inputs * self.left + self.right + self.offset

    def get_config(self):
        config = {"gate_regularizer": self.gate_regularizer, "shift_regularizer": self._shift_regularizer}
        serialize = tf_keras.regularizers.serialize
        return {**super().get_config(), **{name: serialize(value) for name, value in config.items()}}


def gated(**regularizers):
    model = tf_keras.Sequential([Gate(name="gate", **regularizers)])
    model.build((None, 3))
    return model


@pytest.mark.parametrize("regularizer", [L2(1.0), L1(1.0) + L2(1.0), None], ids=str)
def test_one_keyword_of_two_weights(regularizer):
    model = gated(gate_regularizer="l2")
    both = ["gate/gate_left", "gate/gate_right"]
    for value in (regularizer, L2(2.0), None):
        assert set_regularizers(model, gate_regularizer=value) == both
        assert by_path(model) == ({} if value is None else dict.fromkeys(both, float(value(tf.ones([3])))))


def test_attribute_with_an_underscore_and_weight_of_another_name():
    model = gated(shift_regularizer="l2")
    assert set_regularizers(model, shift_regularizer=L2(2.0)) == ["gate/b"]
    assert by_path(model) == {"gate/b": 6.0}
    assert set_regularizers(model, shift_regularizer=None) == ["gate/b"]
    with pytest.raises(ValueError, match=r"`shift_regularizer` would change nothing: .*one of: .*gate_regularizer"):
        set_regularizers(model, shift_regularizer="l2")  # no weight is penalized or named so


@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_share_an_instance_are_told_apart_by_their_names(shared):
    one = L2(1.0)
    dense = layers.Dense(2, kernel_regularizer=one, bias_regularizer=one if shared else L2(1.0), name="dense")
    model = tf_keras.Sequential([dense])
    model.build((None, 3))
    assert set_regularizers(model, bias_regularizer=L1(1.0)) == ["dense/bias"]
    assert set_regularizers(model, kernel_regularizer=None) == ["dense/kernel"]
    assert list(by_path(model)) == ["dense/bias"]


class Lin(layers.Layer):
    """A layer whose weights have other names than its keywords."""

    def __init__(self, kernel_regularizer=None, bias_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.kernel_regularizer, self.bias_regularizer = kernel_regularizer, bias_regularizer

    def build(self, shape):
        self.w = self.add_weight("w", (shape[-1],), initializer="ones", regularizer=self.kernel_regularizer)
        self.b = self.add_weight("b", (shape[-1],), initializer="ones", regularizer=self.bias_regularizer)

    def call(self, inputs):
        return inputs * self.w + self.b


def test_weights_of_other_names_that_share_an_instance_are_not_mixed_up():
    one = L2(1.0)
    model = tf_keras.Sequential([Lin(one, one, name="lin")])
    model.build((None, 3))
    with pytest.raises(ValueError, match="`kernel_regularizer` would change nothing"):
        set_regularizers(model, kernel_regularizer=L1(5.0))
    assert by_path(model) == {"lin/w": 3.0, "lin/b": 3.0}


@tf_keras.saving.register_keras_serializable("tests")
class Doubled(layers.Wrapper):
    """Like a quantization wrapper, it takes over the variable, and the layer holds a tensor."""

    def build(self, shape):
        self.layer.build(shape)
        self.kernel = self.layer.kernel
        self.layer._trainable_weights.remove(self.kernel)
        self._trainable_weights.append(self.kernel)

    def call(self, inputs):
        self.layer.kernel = 2.0 * self.kernel
        return self.layer(inputs)


@pytest.mark.parametrize("regularizer", ["l2", None])
def test_variable_that_a_wrapper_has_taken(regularizer):
    inner = layers.Dense(2, kernel_initializer="ones", kernel_regularizer=regularizer, name="inner")
    model = tf_keras.Sequential([Doubled(inner, name="doubled")])
    model(tf.ones([1, 3]))
    assert not isinstance(inner.kernel, tf.Variable)
    for value, expected in ((L2(1.0), 6.0), (L1(0.5), 3.0)):
        assert set_regularizers(model, kernel_regularizer=value) == ["doubled/inner/kernel"]
        assert by_path(model) == {"doubled/inner/kernel": expected}
    assert set_regularizers(model, kernel_regularizer=None) == ["doubled/inner/kernel"]
    assert model.losses == []


class Block(layers.Layer):
    """Two Dense layers with one regularizer, which the block's config holds."""

    def __init__(self, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self._kernel_regularizer = tf_keras.regularizers.get(kernel_regularizer)

    def build(self, shape):
        make = lambda name: layers.Dense(3, "tanh", kernel_regularizer=self._kernel_regularizer, name=name)  # noqa: E731
        self.first, self.second = make("first"), make("second")

    def call(self, inputs):
        return self.second(self.first(inputs))

    def get_config(self):
        held = tf_keras.regularizers.serialize(self._kernel_regularizer)
        return {**super().get_config(), "kernel_regularizer": held}


class Copied(Block):
    """A block that keeps its arguments in a dict."""

    def __init__(self, kernel_regularizer=None, **kwargs):
        super().__init__(kernel_regularizer, **kwargs)
        self.arguments = {"kernel_regularizer": tf_keras.regularizers.serialize(self._kernel_regularizer)}

    def get_config(self):
        return {**super().get_config(), **self.arguments}


class Half(Block):
    """A block whose second layer has a regularizer of its own."""

    def build(self, shape):
        super().build(shape)
        self.second = layers.Dense(3, "tanh", kernel_regularizer=L1(0.5), name="second")


class Outer(Block):
    """A block in a block."""

    def build(self, shape):
        self.first = Block(self._kernel_regularizer, name="inner")
        self.second = layers.Dense(3, name="second", kernel_regularizer=self._kernel_regularizer)


class Ignoring(Block):
    """A block that ignores its argument."""

    def build(self, shape):
        self.first, self.second = (layers.Dense(3, name=name) for name in ("first", "second"))


class Both(Block):
    """A block that passes its regularizer to another keyword as well."""

    def build(self, shape):
        self.first = layers.Dense(3, kernel_regularizer=self._kernel_regularizer, name="first")
        self.second = layers.SimpleRNN(3, recurrent_regularizer=self._kernel_regularizer, name="second")

    def call(self, inputs):
        return self.second(self.first(inputs)[:, tf.newaxis])


class Own(Block):
    """A block with a kernel of its own, and a layer inside that is not regularized."""

    def build(self, shape):
        self.kernel = self.add_weight("kernel", (4, 3), initializer="ones", regularizer=self._kernel_regularizer)
        self.second = layers.Dense(3, name="second")

    def call(self, inputs):
        return self.second(inputs @ self.kernel)


class Auto(tf_keras.Model):
    """A model whose config Keras makes from the arguments."""

    def __init__(self, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3, kernel_regularizer=kernel_regularizer, name="dense")

    def call(self, inputs):
        return self.dense(inputs)


def block(cls, regularizer):
    model = tf_keras.Sequential([tf_keras.Input((4,)), cls(regularizer, name="block"), layers.Dense(1, name="head")])
    model(tf.ones([1, 4]))
    return model


def reloaded(model, path):
    with warnings.catch_warnings():  # Keras warns that .h5 is the old format
        warnings.simplefilter("ignore")
        model.save(path)
    custom = {cls.__name__: cls for cls in (Block, Copied, Half, Outer, Ignoring, Both, Own, Auto)}
    loaded = tf_keras.models.load_model(path, custom_objects=custom)
    loaded(tf.ones([1, 4]))
    return loaded


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("new", [L2(1.0), None], ids=["set", "removed"])
@pytest.mark.parametrize("old", [L2(0.01), "l2"], ids=["instance", "string"])
@pytest.mark.parametrize("cls", [Block, Outer])
def test_config_of_a_layer_around_follows(cls, old, new, suffix, tmp_path):
    model = block(cls, old)
    set_regularizers(model, kernel_regularizer=new)
    loaded = reloaded(model, tmp_path / f"model{suffix}")
    assert by_path(loaded) == pytest.approx(by_path(model))
    assert len(by_path(loaded)) == (0 if new is None else {Block: 3, Outer: 4}[cls])


@pytest.mark.parametrize(
    ("cls", "where"),
    [(Copied, None), (Half, None), (Both, None), (Own, None), (Auto, None), (Block, "first"), (Outer, "inner")],
    ids=[
        "kept elsewhere",
        "two",
        "two keywords",
        "a weight of its own",
        "a model",
        "one layer of two",
        "one block of two",
    ],
)
def test_warns_of_a_config_that_does_not_follow(cls, where, tmp_path):
    model = block(cls, "l2" if cls is Auto else L2(0.01))
    before = by_path(model)
    choose = None if where is None else lambda layer: layer.name == where
    with pytest.warns(UserWarning, match=r"may contain the old `kernel_regularizer` of 'block', because") as caught:
        set_regularizers(model, kernel_regularizer=L2(1.0), where=choose)
    assert caught[0].filename == __file__
    loaded = by_path(reloaded(model, tmp_path / "model.keras"))
    assert loaded != pytest.approx(by_path(model))
    if cls is not Own:  # Own saves the regularizer of its own weight
        assert {path: value for path, value in loaded.items() if "head" not in path} == pytest.approx(before)


@pytest.mark.parametrize(("cls", "after_loading"), [(Block, 3), (Ignoring, 1)])
def test_warns_where_there_was_none(cls, after_loading, tmp_path):
    """The layer may pass its regularizer on or ignore it: its config is updated in case it passes it on."""
    model = block(cls, None)
    with pytest.warns(UserWarning, match="may contain the old `kernel_regularizer` of 'block', because"):
        set_regularizers(model, kernel_regularizer=L2(1.0))
    loaded = reloaded(model, tmp_path / "model.keras")
    assert len(by_path(model)) == 3
    assert len(by_path(loaded)) == after_loading


def test_warns_if_layers_inside_are_set_one_after_the_other():
    model = block(Block, L2(0.01))
    for name in ("first", "second"):
        with pytest.warns(UserWarning, match="may contain the old `kernel_regularizer` of 'block', because"):
            set_regularizers(model, kernel_regularizer=L1(len(name)), where=lambda layer, name=name: layer.name == name)


class Plain(tf_keras.regularizers.Regularizer):
    """A regularizer that is not registered under a name."""

    def __call__(self, x):
        return tf.reduce_sum(x * x)

    def get_config(self):
        return {}


def squares(x):
    return tf.reduce_sum(x * x)


@pytest.mark.parametrize("regularizer", [Plain(), squares, L2(1.0) + Plain()], ids=["class", "function", "sum"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: layers.Dense(2), (1, 4)), (lambda: layers.LSTM(2), (1, 2, 4)), (lambda: Block(Plain()), (1, 4))],
    ids=["dense", "lstm", "block"],
)
def test_regularizers_that_are_not_registered(make, shape, regularizer):
    model = tf_keras.Sequential([make()])
    model(tf.ones(shape))
    paths = set_regularizers(model, kernel_regularizer=regularizer)
    assert list(by_path(model)) == paths


def test_a_layer_whose_config_cannot_be_written_is_no_obstacle():
    class Unsaved(Block):
        def get_config(self):
            raise NotImplementedError

    model = block(Unsaved, "l2")
    assert len(set_regularizers(model, kernel_regularizer="l1")) == 3


def test_part_of_an_attention_layer():
    """The layer's config has one regularizer for all its projections."""
    x = tf_keras.Input((5, 4))
    model = tf_keras.Model(x, layers.MultiHeadAttention(2, 2, name="attention")(x, x))
    with pytest.warns(UserWarning, match="may contain the old `kernel_regularizer` of 'attention', because"):
        set_regularizers(model, kernel_regularizer="l2", where=lambda layer: layer.name == "query")
    assert list(by_path(model)) == ["attention/query/kernel"]
    set_regularizers(model, kernel_regularizer=L2(1.0))
    assert model.layers[1].get_config()["kernel_regularizer"]["config"] == {"l2": 1.0}


def test_schedule_of_a_part_of_the_layers_that_share_an_instance():
    model = tf_keras.Sequential([layers.Dense(2, name="a"), layers.Dense(1, name="b")])
    model.build((None, 3))
    model.compile("sgd", "mse")
    set_regularizers(model, kernel_regularizer=L2(0.5))

    def where(layer):
        return layer.name == "a"

    scheduler = tfk.RegularizationScheduler(lambda epoch: 0.1, where=where)
    with pytest.raises(ValueError, match="both have the same instance of L2") as raised:
        model.fit(tf.ones([2, 3]), tf.ones([2, 1]), verbose=0, callbacks=[scheduler])
    assert "`set_regularizers(model, kernel_regularizer=L2(l2=0.5), where=...)`" in str(raised.value)
    set_regularizers(model, kernel_regularizer=L2(0.5), where=where)
    model.fit(tf.ones([2, 3]), tf.ones([2, 1]), verbose=0, callbacks=[scheduler])
    assert [float(layer.kernel_regularizer.l2) for layer in model.layers] == [0.1, 0.5]
