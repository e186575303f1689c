"""tensorflow-model-optimization: models that are wrapped to prune, quantize or cluster them."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from common import by_path, check_everything

import tfk_regularizers as tfk

X, Y = np.random.default_rng(0).normal(size=(32, 6)).astype("float32"), np.zeros((32, 2), "float32")
CLUSTERS = {
    "number_of_clusters": 3,
    "cluster_centroids_init": tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
}


def plain(regularizer):
    first = tf_keras.layers.Dense(4, "relu", kernel_regularizer=regularizer, input_shape=(6,), name="first")
    return tf_keras.Sequential([first, tf_keras.layers.Dense(2, kernel_regularizer=regularizer, name="second")])


def pruned(model):
    return tfmot.sparsity.keras.prune_low_magnitude(model)


def quantized(model):
    return tfmot.quantization.keras.quantize_model(model)


def clustered(model):
    return tfmot.clustering.keras.cluster_weights(model, **CLUSTERS)


def pruned_then_quantized(model):
    stripped = tfmot.sparsity.keras.strip_pruning(pruned(model))
    annotated = tfmot.quantization.keras.quantize_annotate_model(stripped)
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def clustered_then_quantized(model):
    stripped = tfmot.clustering.keras.strip_clustering(clustered(model))
    annotated = tfmot.quantization.keras.quantize_annotate_model(stripped)
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme()
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


WRAPPINGS = [pruned, quantized, clustered, pruned_then_quantized, clustered_then_quantized]


@pytest.mark.parametrize("regularizer", ["l2", None])
@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_everything(wrap, regularizer):
    model = wrap(plain(regularizer))
    model(X)
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()] if wrap is pruned else []
    check_everything(model, X, Y, 2, callbacks=callbacks)


# Keras cannot read the .h5 file of a model that was clustered and then quantized, with or without penalties.
@pytest.mark.parametrize(
    ("wrap", "suffix"), [(wrap, "") for wrap in WRAPPINGS] + [(wrap, ".h5") for wrap in WRAPPINGS[:-1]]
)
def test_saved(wrap, suffix, tmp_path):
    model = wrap(plain("l2"))
    model(X)
    tfk.set_regularizers(model, kernel_regularizer=tfk.L1(0.5))
    path = str(tmp_path / f"model{suffix}")
    model.save(path)
    scopes = (tfmot.sparsity.keras.prune_scope, tfmot.clustering.keras.cluster_scope)
    with tfmot.quantization.keras.quantize_scope(), scopes[0](), scopes[1]():
        loaded = tf_keras.models.load_model(path)
    loaded(X)
    assert list(by_path(loaded).values()) == pytest.approx(list(by_path(model).values()))
    assert kinds(loaded) == {tfk.L1}


def kinds(model):
    """The classes of all kernel regularizers."""
    held = [getattr(layer, "kernel_regularizer", None) for layer in model.submodules]
    return {type(regularizer) for regularizer in held if regularizer is not None}


def test_stripped():
    model = clustered(plain("l2"))
    model(X)
    tfk.set_regularizers(model, kernel_regularizer=tfk.L1(0.5))
    stripped = tfmot.clustering.keras.strip_clustering(model)
    assert list(by_path(stripped)) == ["first/kernel", "second/kernel"]
    assert kinds(stripped) == {tfk.L1}
