"""tensorflow-recommenders: layers that contain Dense layers, and models with a step of their own and no `call`."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras
from common import by_path, check_everything, history_of

import tfk_regularizers as tfk

X, Y = np.random.default_rng(0).normal(size=(32, 6)).astype("float32"), np.zeros((32, 1), "float32")
CROSSES = {
    "multi-layer": lambda regularizer: tfrs.layers.feature_interaction.MultiLayerDCN(
        projection_dim=4, num_layers=2, kernel_regularizer=regularizer, name="cross"
    ),
    "cross": lambda regularizer: tfrs.layers.dcn.Cross(projection_dim=3, kernel_regularizer=regularizer, name="cross"),
    "full": lambda regularizer: tfrs.layers.dcn.Cross(kernel_regularizer=regularizer, name="cross"),
}


def crossed(kind, regularizer):
    layers = [tf_keras.Input((6,)), CROSSES[kind](regularizer), tf_keras.layers.Dense(1, name="head")]
    model = tf_keras.Sequential(layers)
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    return model


@pytest.mark.parametrize("regularizer", ["l2", None])
@pytest.mark.parametrize("kind", CROSSES)
def test_cross_layers(kind, regularizer):
    model = crossed(kind, regularizer)
    check_everything(model, X, Y, {"multi-layer": 5, "cross": 3, "full": 2}[kind])


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
@pytest.mark.parametrize("old", [tfk.L2(0.01), None], ids=str)
@pytest.mark.parametrize("kind", CROSSES)
def test_saved(kind, old, suffix, tmp_path):
    model = crossed(kind, old)
    tfk.set_regularizers(model, kernel_regularizer=tfk.L2(1.0))
    path = str(tmp_path / f"model{suffix}")
    model.save(path)
    classes = {cls.__name__: cls for cls in (tfrs.layers.feature_interaction.MultiLayerDCN, tfrs.layers.dcn.Cross)}
    loaded = tf_keras.models.load_model(path, custom_objects=classes)
    assert list(by_path(loaded).values()) == pytest.approx(list(by_path(model).values()))
    assert float(sum(loaded.losses)) == pytest.approx(float(sum(model.losses)))


class Ranking(tfrs.Model):
    def __init__(self):
        super().__init__()
        self.tower = tf_keras.Sequential([tf_keras.layers.Dense(1, kernel_regularizer="l2", name="rate")], name="tower")
        self.task = tfrs.tasks.Ranking(tf_keras.losses.MeanSquaredError())

    def compute_loss(self, inputs, training=False):
        x, y = inputs
        return self.task(y, self.tower(x))


class Retrieval(tfrs.Model):
    def __init__(self):
        super().__init__()
        make = lambda name: tf_keras.layers.Embedding(9, 4, embeddings_regularizer="l2", name=name)  # noqa: E731
        self.users, self.items = make("users"), make("items")
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, inputs, training=False):
        user, item = inputs
        return self.task(self.users(user), self.items(item), compute_metrics=False)


@pytest.mark.parametrize(
    ("cls", "x", "y", "keyword", "paths"),
    [
        (Ranking, X, Y, "kernel_regularizer", ["tower/rate/kernel"]),
        (Retrieval, np.arange(8), np.arange(8), "embeddings_regularizer", ["users/embeddings", "items/embeddings"]),
    ],
    ids=["ranking", "retrieval"],
)
def test_models(cls, x, y, keyword, paths):
    model = cls()
    model.compile(tf_keras.optimizers.SGD(0.0))
    with pytest.raises(ValueError, match="Its class has no `call`: train it for a step first"):
        tfk.penalties(model)
    assert history_of(model, x, y)["regularization_loss"][0] == pytest.approx(sum(by_path(model).values()))
    assert list(by_path(model)) == paths
    for regularizer in (tfk.L2(100.0), tfk.L1(1.0), None):
        assert tfk.set_regularizers(model, **{keyword: regularizer}) == paths
        expected = sum(by_path(model).values())
        history = history_of(model, x, y)
        assert history["regularization_loss"][0] == pytest.approx(expected)
        assert history["total_loss"][0] == pytest.approx(history["loss"][0] + expected)

    tfk.set_regularizers(model, **{keyword: "l2"})
    scheduler = tfk.RegularizationScheduler(lambda epoch: 0.5 * (1 + epoch))
    history = history_of(model, x, y, 2, [scheduler])
    assert history["regularization_loss"][1] == pytest.approx(2 * history["regularization_loss"][0])
    with pytest.raises(ValueError, match=r"cannot split the loss(?s:.*)super\(\).train_step\(data\)"):
        tfk.log_penalties(model)

    tower = model.tower if cls is Ranking else model.users
    if isinstance(tower, tf.keras.Model):
        with pytest.warns(UserWarning, match="If the training step of a model that contains 'tower'"):
            tfk.set_regularizers(tower, **{keyword: "l1"})
