"""A regularizer of numbers is no more to TensorFlow than a built-in one; one that holds a variable is tracked."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk

PENALTIES = [
    tfk.L1(0.5),
    tfk.L2(0.5),
    tfk.L1L2(0.5, 0.5),
    tfk.OrthogonalRegularizer(),
    tfk.SampledOrthogonalRegularizer(),
]


def live(value=0.5):
    return tf.Variable(value, trainable=False)


def model_of(layer):
    return tf_keras.Sequential([tf_keras.Input((3,)), layer])


def test_tracked_from_when_it_holds_a_variable():
    for penalty in PENALTIES:
        assert not isinstance(penalty, tf.__internal__.tracking.Trackable)
    penalty = tfk.L1L2(0.5, 0.5)
    penalty.l2 = live()
    assert isinstance(penalty, tf.__internal__.tracking.Trackable)
    assert isinstance(penalty, tfk.L1L2)
    assert penalty.__class__ is tfk.L1L2
    assert type(penalty)(0.5).__class__ is type(type(penalty)(0.5)) is tfk.L1L2  # of a factor that is a number
    for copied in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty)), type(penalty).from_config({"l1": 1})):
        assert type(copied) is tfk.L1L2


@pytest.mark.parametrize("keyword", ["kernel_regularizer", "activity_regularizer"])
def test_removed_by_hand_it_is_in_no_saved_model(keyword, tmp_path):
    layer = tf_keras.layers.Dense(2)
    setattr(layer, keyword, tfk.L2(0.1))
    model = model_of(layer)
    setattr(layer, keyword, None)
    model.save(tmp_path / "model", save_format="tf")
    loaded = tf_keras.models.load_model(tmp_path / "model", compile=False)
    assert getattr(loaded.layers[-1], keyword) is None
    assert tf_keras.models.clone_model(loaded)(tf.ones([1, 3])).shape == (1, 2)


class Holder(tf_keras.layers.Layer):
    """A layer with several regularizers in a container."""

    def __init__(self, regularizers):
        super().__init__()
        self.regularizers = regularizers

    def build(self, input_shape):
        self.kernel = self.add_weight("kernel", (3, 2), regularizer=self.regularizers[0])

    def call(self, inputs):
        return inputs @ self.kernel


def changed(change):
    layer = Holder([tfk.L2(0.1), tfk.L1(0.1)])
    change(layer.regularizers)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: Holder({0: tfk.L2(0.1), 1: tfk.L1(0.1)}),
        lambda: changed(lambda held: held.pop()),
        lambda: changed(lambda held: held.insert(0, tfk.L1(0.1))),
        lambda: changed(lambda held: held.__setitem__(1, None)),
    ],
    ids=["dict", "pop", "insert", "replace"],
)
def test_in_any_container(make, tmp_path):
    model = model_of(make())
    model.save_weights(tmp_path / "weights", save_format="tf")
    tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    model.save(tmp_path / "model", save_format="tf")


class Lazy(tf_keras.layers.Layer):
    """A layer that makes its regularizer when it is called."""

    regularizer = None

    def build(self, input_shape):
        self.kernel = self.add_weight("kernel", (3, 2))

    def call(self, inputs):
        if self.regularizer is None:
            self.regularizer = tf_keras.regularizers.get("l2")
        self.add_loss(self.regularizer(self.kernel))
        return inputs @ self.kernel


def test_made_in_a_call(tmp_path):
    model = model_of(Lazy())
    model.save(tmp_path / "model", save_format="tf")
    loaded = tf_keras.models.load_model(tmp_path / "model", custom_objects={"Lazy": Lazy}, compile=False)
    loaded(tf.ones([1, 3]))
    assert len(loaded.losses) == 1


@dataclasses.dataclass(frozen=True)
class Frozen(tfk.L2):
    l2: float = 0.5


def test_frozen_subclass_is_restored(tmp_path):
    layers = [tf_keras.layers.Dense(2, kernel_regularizer=Frozen()) for _ in range(2)]
    saved, restored = map(model_of, layers)
    saved.save_weights(tmp_path / "weights", save_format="tf")
    restored.load_weights(tmp_path / "weights")
    np.testing.assert_array_equal(restored.get_weights()[0], saved.get_weights()[0])
    saved.save(tmp_path / "model", save_format="tf")
    loaded = tf_keras.models.load_model(tmp_path / "model", custom_objects={"Frozen": Frozen}, compile=False)
    assert loaded.layers[-1].kernel_regularizer == Frozen()


class Scaled(tfk.L2):
    """A subclass that describes and compares itself by all its attributes."""

    def __init__(self, l2=0.1, scale=1.0):
        super().__init__(l2)
        self._self_scale = scale

    def get_config(self):
        return {name.removeprefix("_self_"): value for name, value in vars(self).items()}

    def __eq__(self, other):
        return vars(self) == vars(other)

    __hash__ = None


class Tuple(tfk.L2):
    """A subclass whose state is a tuple."""

    def __init__(self, l2=0.1, *more):
        super().__init__(l2)
        self.more = more

    def __getstate__(self):
        return (self.l2, *self.more)

    def __setstate__(self, state):
        self.l2, *more = state
        self.more = tuple(more)


def test_attributes_of_a_subclass_are_its_own():
    model = model_of(tf_keras.layers.Dense(2, kernel_regularizer=Scaled(0.5, 2.0)))
    with tf_keras.utils.custom_object_scope({"Scaled": Scaled}):
        clone = tf_keras.models.clone_model(model)
        assert tfk.get(tfk.serialize(Scaled(0.5, 2.0))) == Scaled(0.5, 2.0)
    assert clone.layers[-1].kernel_regularizer == model.layers[-1].kernel_regularizer == Scaled(0.5, 2.0)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_state_of_a_subclass_is_its_own(copied):
    assert copied(Scaled(0.5, 2.0)) == Scaled(0.5, 2.0)
    for more in ((), (1,), (1, 2)):
        assert copied(Tuple(0.5, *more)).more == more


@pytest.mark.heavy
def test_saved_without_custom_gradients(tmp_path, run_python):
    layers = [
        tf_keras.layers.Dense(1100, kernel_regularizer=penalty, use_bias=False, kernel_initializer="ones")
        for penalty in PENALTIES[:4]
    ]
    model = tf_keras.Sequential([tf_keras.Input((1100,)), *layers])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    model.save(tmp_path / "model", save_format="tf", options=options)
    program = """
        import sys
        import tensorflow as tf

        loaded = tf.saved_model.load(sys.argv[1])
        with tf.GradientTape() as tape:
            value = tf.add_n([loss() for loss in loaded.regularization_losses])
        gradients = tape.gradient(value, loaded.trainable_variables)
        print([abs(round(float(gradient[0, 0]), 6)) for gradient in gradients])
    """
    printed = run_python("-c", "\n".join(line[8:] for line in program.splitlines()), tmp_path / "model")
    assert printed == "[0.5, 1.0, 1.5, 0.0]\n"


@pytest.mark.heavy
def test_exported_from_a_graph_of_tensorflow_1(tmp_path, run_python):
    program = """
        import sys
        import tfk_regularizers
        import tensorflow as tf
        import tf_keras

        tf.compat.v1.disable_eager_execution()
        for name in ("l1", "l2", "l1_l2"):
            with tf.Graph().as_default():
                if sys.argv[2] == "write":
                    layer = tf_keras.layers.Dense(2, kernel_regularizer=name)
                    layer.build((None, 3))
                    tf.compat.v1.add_to_collection("loss", layer.losses[0])
                    tf.compat.v1.train.export_meta_graph(f"{sys.argv[1]}/{name}")
                else:
                    tf.compat.v1.train.import_meta_graph(f"{sys.argv[1]}/{name}")
                    (loss,) = tf.compat.v1.get_collection("loss")
                    assert tf.gradients(loss, tf.compat.v1.trainable_variables()[0])[0] is not None
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    for does in ("write", "read"):
        run_python("-c", program, tmp_path, does)


@pytest.mark.parametrize("aggregation", list(tf.VariableAggregation))
def test_variable_that_replicas_read_in_parts_is_refused(aggregation):
    synchronization = tf.VariableSynchronization.ON_READ
    variable = tf.Variable(0.5, trainable=False, synchronization=synchronization, aggregation=aggregation)
    if aggregation in (tf.VariableAggregation.MEAN, tf.VariableAggregation.ONLY_FIRST_REPLICA):
        tfk.L1(variable)
    else:
        with pytest.raises(ValueError, match="Expected a variable that replicas read as it is"):
            tfk.L1(variable)
