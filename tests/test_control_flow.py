"""Penalties inside tf.vectorized_map, tf.cond and TensorFlow 1 graphs, differentiated from outside."""

import contextlib
import itertools

import numpy as np
import pytest
import tensorflow as tf
from differentiation import MODES, assert_close, run
from oracles import PENALTIES

import tfk_regularizers as tfk
from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.reductions import size

# The code paths that `forced` selects, whatever the size of the tensor.
ROUTES = ("small", "halves", "large")
cases = [pytest.param(name, route, id=f"{name}-{route}") for name in PENALTIES for route in ROUTES]
IN_LOOPS = [
    ("rows", "large", "xla"),
    ("columns", "large", "xla"),
]  # `tf.vectorized_map` fails here under XLA


@contextlib.contextmanager
def forced(route):
    """Make each penalty take a code path, as if chosen by size."""
    with pytest.MonkeyPatch.context() as patch:
        if route == "halves":
            patch.setattr(execution, "SINGLE_GRAM_UP_TO", 0)
            patch.setattr(execution, "block_count", lambda x, with_gradient: 2 if with_gradient and x.shape[0] else 1)
        if route == "large":
            for name in ("SINGLE_GRAM_UP_TO", "CUSTOM_GRADIENT_IN_EAGER_FROM", "XLA_CLUSTER_IN_GRAPH_FROM"):
                patch.setattr(execution, name, 0)
            patch.setattr(execution, "block_count", lambda x, with_gradient: size(x, 0) // 4 * 2 + 1)
        yield


def normal(shape):
    return tf.random.stateless_normal(shape, [1, 2])


def gradient(function, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)


@pytest.mark.parametrize(
    ("name", "route", "mode"),
    [case for case in itertools.product(PENALTIES, ROUTES, MODES) if case not in IN_LOOPS],
)
@pytest.mark.light(mode=["graph"])
def test_gradient_through_a_vectorized_map(name, route, mode):
    make, oracle = PENALTIES[name]
    x = normal([3, 7, 4])
    with forced(route):
        penalty = make(tfk)
        result = run(mode, lambda x: gradient(lambda x: tf.reduce_sum(tf.vectorized_map(penalty, x)), x), x)
    assert_close(result, np.stack([oracle(one)[1] for one in x.numpy().astype("float64")]), 2e-6)


BRANCHES = {
    "cond": lambda x, penalty: tf.cond(tf.reduce_sum(x * x) > 0, lambda: penalty(x), lambda: 0.0),
    "switch_case": lambda x, penalty: tf.switch_case(
        tf.cast(tf.reduce_sum(x * x) > 0, "int32"), [lambda: 0.0, lambda: penalty(x)]
    ),
    "cond in while": lambda x, penalty: (
        tf.while_loop(
            lambda i, _: i < 2,
            lambda i, total: (i + 1, total + BRANCHES["cond"](x, penalty)),
            (0, 0.0),
            maximum_iterations=2,
        )[1]
        / 2
    ),
}


@pytest.mark.parametrize("tape", ["around the function", "inside"])
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("name", "route"), cases)
@pytest.mark.light(tape=["inside"], name=["l1_l2", "rows"])
def test_gradient_through_a_branch(name, route, branch, tape):
    make, oracle = PENALTIES[name]
    x, penalty = normal([7, 4]), make(tfk)
    with forced(route):
        if tape == "inside":
            result = tf.function(lambda x: gradient(lambda x: BRANCHES[branch](x, penalty), x), autograph=False)(x)
        else:
            result = gradient(tf.function(lambda x: BRANCHES[branch](x, penalty), autograph=False), x)
    assert_close(result, oracle(x.numpy().astype("float64"))[1], 2e-6)


@pytest.mark.parametrize("branch", ["cond", "function of cond", "function traced before"])
@pytest.mark.parametrize(("name", "route"), cases)
@pytest.mark.light(name=["rows"])
@pytest.mark.light(name=["l1_l2", "soft rows", "group rows"], branch=["cond"])
def test_gradient_through_a_branch_in_a_graph_of_tensorflow_1(name, route, branch):
    make, oracle = PENALTIES[name]
    x, penalty = normal([7, 4]).numpy(), make(tfk)
    inside = tf.function(lambda x: gradient(lambda x: BRANCHES["cond"](x, penalty), x), autograph=False)
    with forced(route):
        if branch == "function traced before":
            inside(tf.constant(x))
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            if branch == "cond":
                result = gradient(lambda x: BRANCHES["cond"](x, penalty), tf.constant(x))
            else:
                result = inside(tf.constant(x))
            result = session.run(result)
    assert_close(result, oracle(x.astype("float64"))[1], 2e-6)


@pytest.mark.parametrize("how", ["resource, tape", "resource, tf.gradients", "reference, tf.gradients"])
@pytest.mark.parametrize(("name", "route"), cases)
@pytest.mark.light(how=["resource, tape"])
def test_gradient_of_a_variable_in_a_graph_of_tensorflow_1(name, route, how):
    make, oracle = PENALTIES[name]
    x, penalty = normal([7, 4]).numpy(), make(tfk)
    with forced(route), tf.Graph().as_default(), tf.compat.v1.Session() as session:
        kernel = tf.compat.v1.get_variable("kernel", initializer=tf.constant(x), use_resource="resource" in how)
        if "tape" in how:
            result = gradient(penalty, kernel)
        else:
            (result,) = tf.compat.v1.gradients(penalty(tf.convert_to_tensor(kernel)), kernel)
        session.run(tf.compat.v1.global_variables_initializer())
        result = session.run(tf.convert_to_tensor(result))
    assert_close(result, oracle(x.astype("float64"))[1], 2e-6)
