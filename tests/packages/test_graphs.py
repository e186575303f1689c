"""spektral and tensorflow-gnn: one keyword for two weights, and layers that contain Dense layers."""

import numpy as np
import pytest
import spektral
import tensorflow as tf
import tensorflow_gnn as tfgnn
import tf_keras
from common import by_path
from tensorflow_gnn.models import gat_v2

import tfk_regularizers as tfk

NODES, EDGES = np.random.default_rng(0).normal(size=(5, 4)).astype("float32"), np.eye(5, dtype="float32")


@pytest.mark.parametrize("regularizer", ["l2", None])
def test_two_attention_kernels(regularizer):
    inputs = tf_keras.Input((4,)), tf_keras.Input((5,))
    layer = spektral.layers.GATConv(3, attn_kernel_regularizer=regularizer, name="gat")
    model = tf_keras.Model(inputs, layer(inputs))
    both = ["gat/attn_kernel_self", "gat/attn_kernel_neigh"]
    for value in (tfk.L2(1.0), tfk.L1(1.0), None):
        assert tfk.set_regularizers(model, attn_kernel_regularizer=value) == both
        assert list(by_path(model)) == ([] if value is None else both)
    assert tfk.set_regularizers(model, kernel_regularizer="l2", attn_kernel_regularizer="l1") == ["gat/kernel", *both]
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    with tfk.log_penalties(model, per_weight=True):
        history = model.fit([NODES, EDGES], np.zeros((5, 3)), batch_size=5, verbose=0).history
    assert {path: history[path][0] for path in ["gat/kernel", *both]} == pytest.approx(by_path(model))


def graph():
    return tfgnn.GraphTensor.from_pieces(
        node_sets={"n": tfgnn.NodeSet.from_fields(sizes=[5], features={tfgnn.HIDDEN_STATE: NODES})},
        edge_sets={
            "e": tfgnn.EdgeSet.from_fields(
                sizes=[5], adjacency=tfgnn.Adjacency.from_indices(("n", np.arange(5)), ("n", np.arange(5)[::-1].copy()))
            )
        },
    )


@pytest.mark.parametrize("old", ["l2", None])
def test_graph_attention(old):
    convolution = gat_v2.GATv2Conv(num_heads=2, per_head_channels=3, receiver_tag=tfgnn.TARGET, kernel_regularizer=old)
    layer = tfgnn.keras.layers.NodeSetUpdate(
        {"e": convolution}, tfgnn.keras.layers.NextStateFromConcat(tf_keras.layers.Dense(4))
    )
    inputs = tf_keras.layers.Input(type_spec=graph().spec)
    update = tfgnn.keras.layers.GraphUpdate(node_sets={"n": layer})
    model = tf_keras.Model(inputs, update(inputs).node_sets["n"][tfgnn.HIDDEN_STATE])
    before = by_path(model)
    assert bool(before) is (old is not None)
    paths = tfk.set_regularizers(model, kernel_regularizer=tfk.L2(1.0))
    assert {*before} < {*paths} == {*by_path(model)}
    assert tfk.set_regularizers(model, kernel_regularizer=None) == paths
    assert model.losses == []
    assert tf.reduce_all(tf.math.is_finite(model(graph())))
