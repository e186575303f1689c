"""The gradients of penalties in SavedModels that are loaded in a process without the package."""

import operator
import textwrap

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tf_keras
from differentiation import assert_close

import tfk_regularizers as tfk


def with_variables(penalty):
    """Replace the factors of the penalty by variables that have been assigned, and return it."""
    for term in getattr(penalty, "regularizers", [penalty]):
        for name in {"l1", "l2", "factor"} & {*vars(term)}:
            variable = tf.Variable(9.0, trainable=False)
            variable.assign(getattr(term, name))
            setattr(term, name, variable)
    return penalty


PENALTIES = oracles.PENALTIES | {
    # With no more rows than the sample size, all rows are used.
    "sampled": (lambda _: tfk.SampledOrthogonalRegularizer(0.3, sample_size=2000), oracles.PENALTIES["rows"][1]),
    "sum": (
        lambda _: tfk.L1(0.3) + tfk.OrthogonalRegularizer(0.3),
        lambda x: tuple(map(operator.add, oracles.l1(x, 0.3), oracles.orthogonal(x, 0.3, "rows"))),
    ),
}
# One Gram matrix, two halves of the rows, and more blocks.
SHAPES = {(7, 5): False, (8, 5): True, (1100, 300): False, (1100, 64): False}  # whether the factors are variables


@pytest.mark.heavy
@pytest.mark.parametrize("custom_gradients", [True, False])
def test_saved_model_without_the_package_has_the_gradients(custom_gradients, tmp_path, run_python):
    """They are right in Keras and TensorFlow. Without saved custom gradients, they are right or raise an error."""
    truths, inputs, outputs = {}, [], []
    for name, (make, truth) in PENALTIES.items():
        for shape, has_variables in SHAPES.items():
            rows, columns = shape[::-1] if "columns" in name else shape
            penalty = with_variables(make(tfk)) if has_variables else make(tfk)
            layer = tf_keras.layers.Dense(columns, use_bias=False, kernel_regularizer=penalty)
            inputs.append(tf_keras.Input((rows,)))
            outputs.append(layer(inputs[-1]))
            layer.set_weights([np.random.default_rng(columns).normal(size=(rows, columns))])
            truths[layer.name] = truth(layer.kernel.numpy().astype("float64"))
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=custom_gradients)
    tf_keras.Model(inputs, outputs).save(tmp_path / "model", save_format="tf", options=options)
    program = """
        import sys
        import numpy as np
        import tensorflow as tf
        import tf_keras

        found = {}

        def differentiate(kind, loss, variables=None):
            with tf.GradientTape() as tape:
                value = loss()
            variables = variables or tape.watched_variables()
            for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
                found[f"{variable.name.split('/')[0]} {kind}"] = gradient
            return value

        loaded = tf.saved_model.load(sys.argv[1] + "/model")
        for loss in loaded.regularization_losses:
            try:
                value = differentiate("loaded by TensorFlow", loss)
                found[list(found)[-1] + " value"] = value
            except LookupError as error:
                assert "No gradient defined" in str(error)
        if sys.argv[2] == "True":
            model = tf_keras.models.load_model(sys.argv[1] + "/model", compile=False)
            differentiate("loaded by Keras", lambda: tf.add_n(model.losses), model.trainable_variables)
        np.savez(sys.argv[1] + "/found.npz", **found)
        assert not any(name.startswith("tfk_regularizers") for name in sys.modules)
    """
    run_python("-c", textwrap.dedent(program), tmp_path, custom_gradients)
    found = np.load(tmp_path / "found.npz")
    assert len(found) == 3 * len(truths) if custom_gradients else len(found) > 0
    for name, array in found.items():
        value, gradient = truths[name.split()[0]]
        assert_close(array, value if name.endswith("value") else gradient, 1e-5)
