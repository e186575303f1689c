"""Users' own penalties, derived from `Penalty`: their arguments, configs, copies and errors."""

import copy
import dataclasses
import functools
import pickle

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk


def build(penalty):
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=penalty, input_shape=(3,))])
    model.compile("sgd", "mse")
    return model


def strength(value=0.5):
    return tf.Variable(value, trainable=False)


class PowerSum:
    """The penalty of all the classes below."""

    power = 3

    def __call__(self, x):
        return self.factor * tf.reduce_sum(tf.abs(x) ** self.power)


@tf_keras.saving.register_keras_serializable("test_own_penalties")
class Declared(PowerSum, tfk.Penalty):
    factor = tfk.Factor()
    power = tfk.Argument(float)

    def __init__(self, factor=0.5, *, power=3.0):
        self.factor = factor
        self.power = power


class Derived(Declared):
    pass


class OfVersion02(PowerSum, tfk.Penalty):
    factor_names = ("factor", "power")
    __init__ = Declared.__init__


@dataclasses.dataclass
class Data(PowerSum, tfk.Penalty):
    factor_names = ("factor", "power")
    factor: float = 0.5
    power: float = 3.0


@dataclasses.dataclass(frozen=True)
class Frozen(PowerSum, tfk.Penalty):
    factor_names = ("factor", "power")
    factor: float = 0.5
    power: float = 3.0


classes = pytest.mark.parametrize("cls", [Declared, Derived, OfVersion02, Data, Frozen])


@classes
def test_config_and_copies_hold_the_numbers(cls):
    variable, x = strength(0.25), tf.constant([1.0, -2.0])
    for factor in (0.25, variable):
        penalty = cls(factor, power=2.0)
        assert tf.function(lambda: penalty(x))() == penalty(x) == 0.25 * 5  # noqa: B023
        assert penalty.get_config() == {"factor": 0.25, "power": 2}
        others = [copy.copy(penalty), copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))]
        others.append(cls.from_config(penalty.get_config()))
        for other in others:
            assert type(other) is cls
            assert type(other.factor) is float
            assert vars(other) == {"factor": 0.25, "power": 2}
    variable.assign(1.0)
    assert penalty(x) == 5
    assert [float(other(x)) for other in others] == [1.25] * 4
    assert dataclasses.is_dataclass(cls) or repr(penalty) == f"{cls.__name__}(factor=<variable: 1.0>, power=2.0)"
    assert {repr(other) for other in others} == {repr(cls(0.25, power=2.0))}


@classes
def test_sum_adds_it_to_others(cls):
    total = tfk.L1(0.5) + cls(0.25) + tfk.L2(1.0)
    assert type(total) is tfk.Sum
    assert float(total(tf.constant([1.0, 2.0]))) == 0.5 * 3 + 0.25 * 9 + 5


@pytest.mark.parametrize("cls", [Declared, Derived])
def test_arguments_are_checked_whenever_they_are_set(cls):
    penalty = cls(2, power="4")
    assert penalty.get_config() == {"factor": 2.0, "power": 4.0}
    assert type(penalty.factor) is float
    for set_factor in (cls, functools.partial(setattr, penalty, "factor")):
        with pytest.raises(ValueError, match=r"argument `factor`\. Expected a finite number.*Received: factor=nan"):
            set_factor(np.nan)
    with pytest.raises(ValueError, match="could not convert string to float"):
        penalty.power = "a"
    assert penalty.get_config() == {"factor": 2.0, "power": 4.0}


def test_model_trains_and_is_saved(tmp_path):
    model = build(Declared(0.25))
    model.set_weights([np.ones((3, 2)), np.zeros(2)])
    with tfk.log_penalties(model):
        history = model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0).history
    assert history["penalty"] == [pytest.approx(1.5)]
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras").layers[-1].kernel_regularizer
    assert repr(loaded) == "Declared(factor=0.25, power=3.0)"


class CallOfALayer(tfk.Penalty):
    def call(self, x):
        return tf.reduce_sum(x)


@pytest.mark.parametrize("cls", [tfk.Penalty, CallOfALayer])
def test_class_without_call_raises(cls):
    for use in (lambda: cls()(tf.ones([2])), lambda: build(cls()).losses):
        with pytest.raises(NotImplementedError, match=rf"{cls.__name__} needs a method `__call__\(self, x\)`"):
            use()


class Undeclared(PowerSum, tfk.Penalty):
    factor = tfk.Factor()

    def __init__(self, factor=0.5, *, power=3.0, **others):
        self.factor = factor
        self.power = power


class WithConfig(Undeclared):
    def get_config(self):
        return super().get_config() | {"power": self.power}


def test_argument_that_the_config_lacks_raises(tmp_path):
    message = r"config of Undeclared lacks its argument `power`.*`power = Factor\(\)` or .*write a `get_config`"
    for penalty in (Undeclared(5.0), Undeclared(strength(5.0))):
        for use in (penalty.get_config, lambda: build(penalty).save(tmp_path / "model.keras")):  # noqa: B023
            with pytest.raises(NotImplementedError, match=message):
                use()
    assert "factor=5.0" in repr(Undeclared(5.0))


def test_own_get_config_is_used():
    copied = WithConfig.from_config(WithConfig(5.0, power=2.0).get_config())
    assert copied.get_config() == {"factor": 5.0, "power": 2.0}


def test_argument_that_is_not_set_raises():
    class Unset(tfk.Penalty):
        factor = tfk.Factor()

    with pytest.raises(AttributeError, match=r"`Unset\.__init__` does not set the argument `factor`"):
        Unset().get_config()
    assert repr(Unset()) == "Unset()"


def test_subclass_of_a_penalty_has_free_names_and_the_config_of_one_of_the_built_in(builtin):
    """Its copies have all its attributes, and a variable that is not a factor stays a variable."""

    def make(module):
        class WithFactor(module.L2):
            def __init__(self, factor):
                super().__init__(factor / 2)
                self.factor, self.start, self.axes = factor, strength(1.0), [0, 1]

        return WithFactor(0.5)

    penalty = make(tfk)
    assert penalty.get_config() == make(builtin).get_config() == {"l2": 0.25}
    for one in (penalty, copy.deepcopy(penalty)):
        assert (one.factor, one.l2, one.axes, type(one.axes)) == (0.5, 0.25, [0, 1], list)
        assert isinstance(one.start, tf.Variable)
