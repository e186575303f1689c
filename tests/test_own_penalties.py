"""A penalty of one's own, derived from `Penalty`: what its class needs, and what is said where that is not there."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk


class Cubes(tfk.Penalty):
    factor_names = ("factor",)

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, x):
        return self.factor * tf.reduce_sum(tf.abs(x) ** 3)


def build(regularizer):
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, kernel_regularizer=regularizer, input_shape=(3,))])
    model.compile("sgd", "mse")
    return model


class Nothing(tfk.Penalty):
    pass


class CallOfALayer(tfk.Penalty):
    def call(self, x):
        return tf.reduce_sum(x)


@pytest.mark.parametrize("cls", [tfk.Penalty, Nothing, CallOfALayer])
def test_without_a_call_it_is_told_and_not_zero(cls):
    message = rf"{cls.__name__} needs a method `__call__\(self, x\)`"
    with pytest.raises(NotImplementedError, match=message):
        cls()(tf.ones([2]))
    with pytest.raises(NotImplementedError, match=message):
        build(cls()).losses  # noqa: B018


def test_the_call_of_another_base_is_taken():
    class Other(tf_keras.regularizers.Regularizer):
        def __call__(self, x):
            return tf.reduce_sum(x)

    class Both(tfk.Penalty, Other):
        pass

    assert float(Both()(tf.ones([2]))) == 2


class FactorForgotten(tfk.Penalty):
    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, x):
        return self.factor * tf.reduce_sum(x)


class MoreThanFactors(Cubes):
    def __init__(self, factor=0.5, *, power=3.0, **others):
        super().__init__(factor)
        self.power = power


class WithItsConfig(MoreThanFactors):
    def get_config(self):
        return {"factor": self.factor, "power": self.power}


class OnTopOfOurs(MoreThanFactors):
    def get_config(self):
        return super().get_config() | {"power": self.power}


@pytest.mark.parametrize(("cls", "lost"), [(FactorForgotten, "`factor`"), (MoreThanFactors, "`power`")])
def test_what_a_file_would_lose_is_told_when_it_is_written(cls, lost, tmp_path):
    """As a layer of Keras does, whose `get_config` lacks an argument."""
    penalty = cls(5.0)
    message = rf"{cls.__name__} takes {lost} and has no `get_config` that carries it"
    with pytest.raises(NotImplementedError, match=message):
        penalty.get_config()
    with pytest.raises(NotImplementedError, match=message):
        build(penalty).save(tmp_path / "model.keras")
    assert "factor=5.0" in repr(penalty)
    assert "factor=5.0" in repr(penalty + tfk.L1(0.5))
    with pytest.raises(NotImplementedError, match=message):
        cls(tf.Variable(5.0, trainable=False)).get_config()


@pytest.mark.parametrize("cls", [WithItsConfig, OnTopOfOurs])
def test_a_get_config_of_its_own(cls):
    assert cls.from_config(cls(5.0, power=2.0).get_config()).get_config() == {"factor": 5.0, "power": 2.0}


def test_a_subclass_of_ours_is_saved_as_one_of_the_built_in(builtin):
    def config(module):
        class Weighted(module.L2):
            def __init__(self, strength=0.5):
                super().__init__(strength / 2)

        return Weighted(0.5).get_config()

    assert config(tfk) == config(builtin)


def test_names_of_factors_are_a_tuple():
    with pytest.raises(TypeError, match=r"`factor_names` of Text .* such as `\('factor',\)`. Received: 'factor'"):

        class Text(tfk.Penalty):
            factor_names = "factor"


def test_a_factor_that_is_named_and_not_set():
    class Unset(tfk.Penalty):
        factor_names = ("alpha",)

    with pytest.raises(AttributeError, match="Unset has `alpha` among its `factor_names`, and its `__init__` does not"):
        Unset().get_config()
    assert repr(Unset()) == "Unset()"


@pytest.mark.parametrize(
    ("penalty", "name", "has"),
    [
        (tfk.L2(), "factor", "`l2`"),
        (tfk.L2(), "l1", "`l2`"),
        (tfk.L1L2(), "factor", "`l1`, `l2`"),
        (tfk.GroupLasso(), "l2", "`factor`, `mode`"),
        (tfk.L1(tf.Variable(0.5, trainable=False)), "factor", "`l1`"),
    ],
)
def test_an_argument_that_it_does_not_have_is_no_silent_attribute(penalty, name, has):
    message = f"{type(penalty).__name__} has no argument `{name}`, .* has no effect. It has {re.escape(has)}."
    with pytest.warns(UserWarning, match=message) as warned:
        setattr(penalty, name, 0.2)
    assert warned[0].filename == __file__
    assert getattr(penalty, name) == 0.2


def test_attributes_of_other_names_and_of_subclasses_are_the_users_own():
    class WithFactor(tfk.L2):
        def __init__(self, factor):
            super().__init__(factor / 2)
            self.factor = factor

    assert WithFactor(0.5).factor == 0.5
    penalty = tfk.L2()
    penalty.note = "of the first experiment"
    assert penalty.note == "of the first experiment"


def test_it_trains():
    model = build(Cubes(0.25))
    model.set_weights([np.ones((3, 2)), np.zeros(2)])
    history = model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0, callbacks=[tfk.PenaltyLogger()]).history
    assert history["penalty"] == [pytest.approx(1.5)]
