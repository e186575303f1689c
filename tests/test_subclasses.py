"""Users' subclasses of the penalties behave like subclasses of the built-in classes."""

import abc
import copy
import dataclasses
import pickle
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN

import tfk_regularizers as tfk


def subclasses(module, name):
    """Subclasses of the regularizers in `module`. The global `name` must refer to them, so that pickle finds them."""

    class PerChannel(module.L2):
        def __init__(self, l2=(0.1, 0.2, 0.3)):
            self.l2 = np.asarray(l2, "float32")

        def __call__(self, x):
            return tf.reduce_sum(self.l2 * tf.reduce_sum(tf.square(x), 0))

    class PerChannelVariable(PerChannel):
        def __init__(self):
            self.l2 = tf.Variable([0.1, 0.2, 0.3])

    @dataclasses.dataclass(frozen=True)
    class Frozen(module.L2):
        l2: float = 0.25

    class Slots(module.L2):
        __slots__ = ("power",)

        def __init__(self, l2=0.25):
            super().__init__(l2)
            self.power = 3

    class Property(module.L1):
        def __init__(self):
            self.half = 0.25

        @property
        def l1(self):
            return tf.constant(2 * self.half)

    class Stateful(module.L2):
        def __getstate__(self):
            return {"number": 0.5}

        def __setstate__(self, state):
            self.l2 = state["number"]

    class Abstract(module.L2, abc.ABC):
        @tf.function
        def __call__(self, x):
            return 2.0 * super().__call__(x)

    local = [PerChannel, PerChannelVariable, Frozen, Slots, Property, Stateful, Abstract]
    for cls in local:
        cls.__qualname__ = f"{name}.{cls.__name__}"
    return types.SimpleNamespace(**{cls.__name__: cls for cls in local})


OF_OURS, OF_BUILTIN = subclasses(tfk, "OF_OURS"), subclasses(BUILTIN, "OF_BUILTIN")
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@pytest.mark.parametrize("name", vars(OF_OURS))
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_subclass_behaves_as_that_of_the_built_in(name, copied, tmp_path):
    """Compares the attributes of an instance and of its copy, and the loss and the checkpoint of a layer with each."""

    def outcome(cls):
        found = []
        for regularizer in (cls(), copied(cls())):
            layer = tf_keras.layers.Dense(3, kernel_initializer="ones", kernel_regularizer=regularizer)
            model = tf_keras.Sequential([tf_keras.Input((4,)), layer])
            names = {*vars(regularizer), *getattr(cls, "__slots__", ())} - {"__module__"}
            held = {name: np.asarray(getattr(regularizer, name)) for name in names if not name.startswith("_")}
            model.save_weights(tmp_path / "weights", save_format="tf")
            found.append([float(model.losses[0]), held, tf.train.list_variables(str(tmp_path / "weights"))])
        return found

    pairs = zip(outcome(getattr(OF_OURS, name)), outcome(getattr(OF_BUILTIN, name)), strict=True)
    for (loss, held, weights), (expected_loss, expected_held, expected_weights) in pairs:
        assert loss == pytest.approx(expected_loss)
        assert held.keys() == expected_held.keys()
        for key, value in held.items():
            assert value.dtype == object or np.allclose(value, expected_held[key])
        assert weights == expected_weights
