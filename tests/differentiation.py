"""Call and differentiate a penalty eagerly, in a tf.function, or compiled by XLA."""

import numpy as np
import tensorflow as tf

MODES = ("eager", "graph", "xla")


def compiled(mode, function):
    """Return the function, compiled as the mode says."""
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla" or None, autograph=False)


def run(mode, function, *arguments):
    """Call function(*arguments) in a mode."""
    return compiled(mode, function)(*arguments)


def value_and_gradient(penalty):
    """The function x → (penalty, its gradient), using a tape."""

    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = penalty(x)
        return value, tape.gradient(value, x)

    return function


def hessian_product(penalty):
    """The function (x, v) → Hessian times v, using two tapes."""

    def function(x, v):
        with tf.GradientTape() as outer:
            outer.watch(x)
            _, gradient = value_and_gradient(penalty)(x)
        return outer.gradient(gradient, x, output_gradients=v, unconnected_gradients="zero")

    return function


def forward_derivative(penalty):
    """The function (x, v) → derivative along v, in forward mode."""

    def function(x, v):
        with tf.autodiff.ForwardAccumulator(x, v) as accumulator:
            value = penalty(x)
        return accumulator.jvp(value)

    return function


def assert_close(actual, expected, tolerance):
    """Assert that the largest difference is at most `tolerance` times the largest expected number."""
    actual, expected = (np.asarray(a, np.result_type(np.asarray(a), np.float64)) for a in (actual, expected))
    assert actual.shape == expected.shape
    assert np.all(np.isfinite(actual))
    if actual.size:
        assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-300)


def _reverse_over_forward(penalty):
    def function(x, v):
        with tf.GradientTape() as tape:
            tape.watch(x)
            derivative = forward_derivative(penalty)(x, v)
        return tape.gradient(derivative, x)

    return function


def _forward_over_reverse(penalty):
    def function(x, v):
        with tf.autodiff.ForwardAccumulator(x, v) as accumulator:
            _, gradient = value_and_gradient(penalty)(x)
        return accumulator.jvp(gradient)

    return function


def _forward_over_forward(penalty):
    def function(x, v):
        with tf.autodiff.ForwardAccumulator(x, v) as accumulator:
            derivative = forward_derivative(penalty)(x, v)
        return accumulator.jvp(derivative)

    return function


# All return the Hessian times v, except the last, which returns v times that.
SECOND_DERIVATIVES = {
    "reverse over reverse": hessian_product,
    "reverse over forward": _reverse_over_forward,
    "forward over reverse": _forward_over_reverse,
    "forward over forward": _forward_over_forward,
}
