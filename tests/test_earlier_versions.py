"""Files and pickles that earlier versions of the package have written: they still open, with the same penalties.

Those of version 0.1 name its modules. Five layers, each of 3 inputs and 3 units and all weights 1, with a penalty each;
in the SavedModel the last of them alone. The file of Keras 3 is one of Keras 3.12, the last for Python 3.10: an older
Keras 3 does not read what a newer one writes.
"""

import pathlib
import pickle

import pytest
import tf_keras
from libraries import KERAS3, needs_keras3

import tfk_regularizers as tfk

DATA = pathlib.Path(__file__).parent / "data"
PENALTIES = [
    tfk.L1(0.5),
    tfk.L2(0.25),
    tfk.L1L2(0.5, 0.25),
    tfk.OrthogonalRegularizer(0.5, "columns"),
    tfk.SampledOrthogonalRegularizer(0.5, sample_size=8),
]


def assert_same(opened, expected):
    assert [type(one) for one in opened] == [type(one) for one in expected]
    assert [one.get_config() for one in opened] == [one.get_config() for one in expected]


def test_pickle():
    assert_same(pickle.loads((DATA / "version_0_1.pickle").read_bytes()), PENALTIES)
    assert b"_" not in pickle.dumps(type(PENALTIES[0])).split(b"tfk_regularizers")[1]  # no private module


@pytest.mark.parametrize("name", ["version_0_1.keras", "version_0_1_saved_model"])
def test_file(name):
    layers = tf_keras.models.load_model(DATA / name).layers[-5:]
    expected = PENALTIES if name.endswith(".keras") else PENALTIES[-1:]
    assert_same([layer.kernel_regularizer for layer in layers[-len(expected) :]], expected)


@needs_keras3
def test_file_of_keras_3():
    loaded = KERAS3.models.load_model(DATA / "version_0_1_keras_3.keras")
    assert_same([layer.kernel_regularizer for layer in loaded.layers], PENALTIES)
