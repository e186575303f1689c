"""Penalties of a user's own, derived from `Penalty`: their arguments, configs and copies, and the errors."""

import copy
import dataclasses
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


CLASSES = [Declared, OfVersion02, Data, Frozen]
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda penalty: pickle.loads(pickle.dumps(penalty)),
    "config": lambda penalty: type(penalty).from_config(penalty.get_config()),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_config_and_copies_hold_the_numbers(cls, copied):
    variable = strength(0.25)
    x = tf.constant([1.0, -2.0])
    for factor in (0.25, variable):
        penalty = cls(factor, power=2.0)
        assert tf.function(lambda: penalty(x))() == penalty(x) == 0.25 * 5  # noqa: B023
        assert penalty.get_config() == {"factor": 0.25, "power": 2}
        other = copied(penalty)
        assert type(other) is cls
        assert type(other.factor) is float
        assert vars(other) == {"factor": 0.25, "power": 2}
    variable.assign(1.0)
    assert (penalty(x), other(x)) == (5, 1.25)
    assert dataclasses.is_dataclass(cls) or repr(penalty) == f"{cls.__name__}(factor=<variable: 1.0>, power=2.0)"
    assert repr(other) == repr(cls(0.25, power=2.0))


@pytest.mark.parametrize("cls", CLASSES)
def test_sum_adds_it_to_others(cls):
    total = tfk.L1(0.5) + cls(0.25) + tfk.L2(1.0)
    assert type(total) is tfk.Sum
    assert float(total(tf.constant([1.0, 2.0]))) == 0.5 * 3 + 0.25 * 9 + 5


def test_arguments_are_checked_whenever_they_are_set():
    penalty = Declared(2, power="4")
    assert penalty.get_config() == {"factor": 2.0, "power": 4.0}
    assert type(penalty.factor) is float
    with pytest.raises(ValueError, match=r"argument `factor`\. Expected a finite number.*Received: factor=nan"):
        penalty.factor = np.nan
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


class Nothing(tfk.Penalty):
    pass


class CallOfALayer(tfk.Penalty):
    def call(self, x):
        return tf.reduce_sum(x)


@pytest.mark.parametrize("cls", [tfk.Penalty, Nothing, CallOfALayer])
def test_class_without_call_raises(cls):
    message = rf"{cls.__name__} needs a method `__call__\(self, x\)`"
    with pytest.raises(NotImplementedError, match=message):
        cls()(tf.ones([2]))
    with pytest.raises(NotImplementedError, match=message):
        build(cls()).losses  # noqa: B018


class Base(tfk.Penalty):
    factor = tfk.Factor()

    def __init__(self, factor):
        self.factor = factor


class Derived(PowerSum, Base):
    pass


@pytest.mark.parametrize("cls", [Declared, Derived])
def test_factor_that_a_base_class_declares_is_checked(cls):
    with pytest.raises(ValueError, match=r"argument `factor`\. Expected a finite number.*Received: factor='a'"):
        cls("a")


class Undeclared(PowerSum, tfk.Penalty):
    def __init__(self, factor=0.5):
        self.factor = factor


class PowerUndeclared(PowerSum, tfk.Penalty):
    factor = tfk.Factor()

    def __init__(self, factor=0.5, *, power=3.0, **others):
        self.factor = factor
        self.power = power


class WithConfig(PowerUndeclared):
    def get_config(self):
        return {"factor": self.factor, "power": self.power}


class WithMoreConfig(PowerUndeclared):
    def get_config(self):
        return super().get_config() | {"power": self.power}


@pytest.mark.parametrize(("cls", "lost"), [(Undeclared, "factor"), (PowerUndeclared, "power")])
def test_argument_that_the_config_lacks_raises(cls, lost, tmp_path):
    message = rf"config of {cls.__name__} lacks its argument `{lost}`.*`{lost} = Factor\(\)` or .*write a `get_config`"
    for penalty in (cls(5.0), cls(strength(5.0))):
        with pytest.raises(NotImplementedError, match=message):
            penalty.get_config()
        with pytest.raises(NotImplementedError, match=message):
            build(penalty).save(tmp_path / "model.keras")
    assert "factor=5.0" in repr(cls(5.0))


@pytest.mark.parametrize("cls", [WithConfig, WithMoreConfig])
def test_own_get_config_is_used(cls):
    assert cls.from_config(cls(5.0, power=2.0).get_config()).get_config() == {"factor": 5.0, "power": 2.0}


def test_argument_that_is_not_set_raises():
    class Unset(tfk.Penalty):
        factor = tfk.Factor()

    with pytest.raises(AttributeError, match=r"`Unset\.__init__` does not set the argument `factor`"):
        Unset().get_config()
    assert repr(Unset()) == "Unset()"


def test_subclass_of_a_penalty_is_saved_as_one_of_the_built_in(builtin):
    def config(module):
        class Weighted(module.L2):
            def __init__(self, strength=0.5):
                super().__init__(strength / 2)

        return Weighted(0.5).get_config()

    assert config(tfk) == config(builtin)


def test_attributes_of_other_names_are_free():
    class WithFactor(tfk.L2):
        def __init__(self, factor):
            super().__init__(factor / 2)
            self.factor = factor

    penalty = WithFactor(0.5)
    penalty.note = "of the first experiment"
    assert (penalty.factor, penalty.note, penalty.get_config()) == (0.5, "of the first experiment", {"l2": 0.25})
