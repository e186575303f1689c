"""summary: its lines, its notes and the sum, compared with `penalties`."""

import re
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import BUILTIN
from libraries import KERAS3, KERASES, both_kerases, needs_host

import tfk_regularizers as tfk
from tfk_regularizers import L1, L2, summary


def lines(model):
    """The cells of each line of the table, without its frame, and the lines below the table."""
    printed = []
    assert summary(model, print_fn=printed.append) is None
    (text,) = printed
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return rows, [line for line in text.splitlines()[1:] if line[0] not in "┏┃┡│└"]


@both_kerases
def test_weights_and_outputs_of_nested_layers(keras):
    block = keras.Sequential([keras.layers.Dense(3, kernel_regularizer=L2(0.5), name="dense")], name="block")
    heads = keras.layers.Dense(
        2, bias_regularizer="l1", activity_regularizer=L1(0.2), bias_initializer="ones", name="head"
    )
    model = keras.Sequential([keras.Input((4,)), block, heads])
    rows, below = lines(model)
    penalties = {path: float(value) for path, value in tfk.penalties(model).items()}
    total = sum(penalties.values())
    here = "tfk_regularizers"
    kernel, bias = (f"{penalties[path]:.4g}" for path in ("block/dense/kernel", "head/bias"))
    shares = [f"{100 * value / total:.0f}%" for value in penalties.values()]
    assert rows == [
        ["block/dense/kernel", "(4, 3)", "L2(l2=0.5)", here, kernel, shares[0]],
        ["head/bias", "(2,)", "L1(l1=0.01)", here, bias, shares[1]],
        ["head/activity", "", "L1(l1=0.2)", here, "", ""],
    ]
    assert below == [f"Sum of the penalties of weights: {total:.4g}"]


@both_kerases
def test_notes(keras):
    class Mine((KERAS3 or tf_keras).regularizers.Regularizer):
        def __call__(self, x):
            return tf.reduce_sum(x**2)

    by_hand = keras.layers.Dense(2, kernel_regularizer="l2", name="by_hand")
    frozen = keras.layers.Dense(2, kernel_regularizer=Mine(), trainable=False, name="frozen")
    model = keras.Sequential([keras.Input((4,)), by_hand, frozen])
    by_hand.kernel_regularizer = L1(0.25)
    rows, below = lines(model)
    cells = {path.rstrip(" *"): rest for path, *rest in rows}
    assert cells["frozen/kernel"][1:3] == ["Mine()", "test_summary"]
    assert "by_hand/kernel *" in [path for path, *_ in rows]
    assert "by_hand/kernel: set on a built layer: no effect until the model is saved and loaded" in below
    waiting = keras.Sequential([keras.layers.Dense(2, kernel_regularizer="l2", name="waiting")])
    assert "waiting/kernel: the layer has no weights yet" in lines(waiting)[1]
    is_penalized, is_of_other = keras is tf_keras, keras is tf_keras and KERAS3 is not None
    assert ("frozen/kernel: frozen, not penalized" in below) == (not is_penalized)
    assert ("frozen/kernel: derived from the base class of the other Keras" in below) == is_of_other
    assert (cells["frozen/kernel"][3] != "") == is_penalized


@pytest.mark.filterwarnings("ignore:L1 is the built-in regularizer of Keras 3")
def test_built_in_regularizers_and_those_of_keras_3():
    layers = [tf_keras.layers.Dense(2, kernel_regularizer=BUILTIN.L2(0.5), name="old")]
    expected = [["old/kernel *", "(4, 2)", "L2(l2=0.5)", "tf_keras"]]
    notes = ["old/kernel: built-in, from before the import of tfk_regularizers"]
    if "Keras 3" in KERASES:
        own = sys.modules[KERAS3.regularizers.Regularizer.__module__].L1(0.5)
        layers.append(tf_keras.layers.Dense(2, kernel_regularizer=own, name="other"))
        expected.append(["other/kernel *", "(2, 2)", "L1(l1=0.5)", "Keras 3"])
        notes.append("other/kernel: built-in, from before the import of tfk_regularizers")
    model = tf_keras.Sequential(layers)
    model.build((None, 4))
    rows, below = lines(model)
    assert [row[:4] for row in rows] == expected
    assert below[:-1] == notes


@both_kerases
@pytest.mark.heavy
def test_resnet50(keras):
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=4)
    paths = tfk.set_regularizers(model, kernel_regularizer="l2", gamma_regularizer="l1")
    rows, below = lines(model)
    assert sorted(path for path, *_ in rows) == sorted(paths)
    total = float(below[-1].rpartition(" ")[2])
    assert total == pytest.approx(sum(map(float, tfk.penalties(model).values())), rel=1e-3)


@both_kerases
def test_model_without_regularizers_and_other_objects(keras):
    without = ["No weight or output is regularized.", "Sum of the penalties of weights: 0"]
    assert lines(keras.Sequential([keras.layers.Dense(2)])) == ([], without)
    with pytest.raises(TypeError, match=r"`summary` expects a Keras model\. Received: "):
        summary(keras.layers.Dense(2))


def test_prints_where_keras_prints(capsys):
    summary(tf_keras.Sequential([tf_keras.layers.Dense(2)], name="small"))
    assert capsys.readouterr().out.startswith('Regularizers of "small"\nNo weight or output is regularized.\n')


def test_without_rich(monkeypatch):
    for name in ("rich", "rich.console", "rich.table"):
        monkeypatch.setitem(sys.modules, name, None)
    layer = tf_keras.layers.Dense(1, kernel_regularizer="l2", kernel_initializer="ones", name="a")
    model = tf_keras.Sequential([layer])
    model.build((None, 3))
    printed = []
    summary(model, print_fn=printed.append)
    assert re.search(r"^a/kernel +\(3, 1\) +L2\(l2=0\.01\) +tfk_regularizers +0\.03 +100%$", printed[0], re.M)


@needs_host
def test_numbers_are_finite_in_half_precision():
    layer = KERAS3.layers.Dense(300, kernel_regularizer="l1", kernel_initializer="ones", dtype="float16", name="a")
    model = KERAS3.Sequential([KERAS3.Input((300,)), layer])
    ((_, _, _, _, penalty, _),) = lines(model)[0]
    assert np.isclose(float(penalty), 900.0)
