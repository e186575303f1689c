"""Models with a training step of their own, which calls the inner models: distillers, GANs and VAEs."""

import re
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfk_regularizers as tfk

X, Y = np.ones((8, 6), "float32"), np.zeros((8, 2), "float32")


class Distiller(tf_keras.Model):
    """A model as in Keras's guides: the class has no `call`, and the step adds `self.losses` itself."""

    def __init__(self, student):
        super().__init__(name="distiller")
        self.student = student

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((y - self.student(x)) ** 2) + tf.add_n(self.losses or [0.0])
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"loss": loss}


def distiller(regularizer="l2", **arguments):
    """A distiller whose student has a kernel of ones, compiled with a learning rate of 0."""
    hidden = layers.Dense(2, kernel_initializer="ones", kernel_regularizer=regularizer, name="hidden", **arguments)
    model = Distiller(tf_keras.Sequential([hidden], name="student"))
    model.compile(tf_keras.optimizers.SGD(0.0))
    return model


def loss_of_fit(model):
    return model.fit(X, Y, batch_size=8, verbose=0).history["loss"][0]


@pytest.mark.parametrize("regularizer", ["l2", None])
def test_model_whose_own_call_never_runs(regularizer):
    model = distiller(regularizer)
    data_loss = loss_of_fit(model) - (0.12 if regularizer else 0.0)
    assert not model.built
    assert {path: float(value) for path, value in tfk.penalties(model).items()} == (
        {"student/hidden/kernel": pytest.approx(0.12)} if regularizer else {}
    )
    assert tfk.set_regularizers(model, kernel_regularizer=tfk.L2(100.0)) == ["student/hidden/kernel"]
    assert loss_of_fit(model) == pytest.approx(data_loss + 1200.0)
    assert tfk.set_regularizers(model, kernel_regularizer=None) == ["student/hidden/kernel"]
    assert loss_of_fit(model) == pytest.approx(data_loss)
    assert tfk.penalties(model) == {}


def test_schedule_of_such_a_model():
    model = distiller()
    scheduler = tfk.RegularizationScheduler(lambda epoch: 1.0 + epoch)
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[scheduler]).history
    assert history["l2"] == [1.0, 2.0]
    assert np.diff(history["loss"]) == pytest.approx(12.0)


class Sum(tf_keras.Model):
    def call(self, inputs):
        return tf.reduce_sum(inputs)


@pytest.mark.parametrize(
    ("model", "what_to_do"),
    [
        (tf_keras.Sequential([layers.Dense(1)], name="m"), "Call it on a batch of data first."),
        (Sum(name="m"), "Call it on a batch of data first."),
        (Distiller(tf_keras.Sequential([layers.Dense(1)])), "Its class has no `call`: train it for a step first."),
    ],
    ids=["sequential", "own call", "no call"],
)
def test_model_without_weights_is_told_what_to_do(model, what_to_do):
    for call in (tfk.penalties, lambda model: tfk.set_regularizers(model, kernel_regularizer="l2")):
        with pytest.raises(ValueError, match=re.escape(f"The model '{model.name}' has no weights yet. {what_to_do}")):
            call(model)


def test_layer_inside_that_has_no_weights_yet():
    model = distiller()
    loss_of_fit(model)
    model.unused = layers.Dense(3, kernel_regularizer="l2", name="unused")
    with pytest.raises(ValueError, match="layer 'unused' has no weights yet"):
        tfk.set_regularizers(model, kernel_regularizer="l2")
    with pytest.raises(ValueError, match="layer 'unused' has no weights yet"):
        tfk.penalties(model)
    chosen = tfk.set_regularizers(model, kernel_regularizer="l2", where=lambda layer: layer.name == "hidden")
    assert chosen == ["student/hidden/kernel"]


KEPT = "If the training step of a model that contains 'student', or a `tf.function`, was already traced, it keeps"


@pytest.mark.parametrize("regularizer", [tfk.L2(100.0), None], ids=["replaced", "removed"])
@pytest.mark.parametrize("old", ["l2", tfk.L1(1.0) + tfk.GroupLasso(1.0)], ids=["L2", "sum"])
def test_change_inside_a_model_that_is_traced_already(old, regularizer):
    model = distiller(old)
    before = loss_of_fit(model)
    with pytest.warns(UserWarning, match=KEPT) as caught:
        tfk.set_regularizers(model.student, kernel_regularizer=regularizer)
    assert caught[0].filename == __file__
    assert loss_of_fit(model) == before  # as the warning says
    tfk.set_regularizers(model, kernel_regularizer=regularizer)  # no warning: the replaced regularizer was not traced
    assert loss_of_fit(model) == pytest.approx(float(sum(model.losses)) + 36.0)


def test_change_of_what_a_function_of_ones_own_has_traced():
    model = tf_keras.Sequential([layers.Dense(2, kernel_regularizer="l2", input_shape=(3,))], name="student")
    penalty = tf.function(lambda: tf.add_n(model.losses))
    penalty()
    with pytest.warns(UserWarning, match=KEPT):
        tfk.set_regularizers(model, kernel_regularizer="l1")


def test_no_warning_where_the_change_reaches_the_step_or_nothing_is_traced():
    inner = tf_keras.Sequential([layers.Dense(2, kernel_regularizer="l2", input_shape=(6,))], name="student")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfk.set_regularizers(inner, kernel_regularizer="l1")  # nothing is traced yet
        outer = tf_keras.Sequential([inner, layers.Dense(2)])
        outer.compile("sgd", "mse")
        outer.fit(X, Y, verbose=0)
        tfk.set_regularizers(outer, kernel_regularizer="l2")  # its own step is traced again
        outer.fit(X, Y, verbose=0)
        outer.compile("sgd", "mse")
        tfk.set_regularizers(outer, kernel_regularizer=None)


def test_an_error_made_of_that_warning_leaves_the_model_as_it_was():
    model = distiller()
    loss_of_fit(model)
    held = model.student.layers[0].kernel_regularizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=KEPT):
            tfk.set_regularizers(model.student, kernel_regularizer="l1")
    assert model.student.layers[0].kernel_regularizer is held
    assert float(sum(model.losses)) == pytest.approx(0.12)


def test_log_penalties_shows_what_to_write_in_a_step_that_adds_the_losses_itself():
    model = distiller()
    with pytest.raises(ValueError, match="cannot split the loss of the model 'distiller'") as raised:
        tfk.log_penalties(model)
    shown = re.search(r"    def train_step.*\n.*\}", str(raised.value)).group()

    namespace = {}
    exec(f"class Logged(Distiller):\n{shown}", {**globals()}, namespace)
    logged = namespace["Logged"](model.student)
    logged.compile(tf_keras.optimizers.SGD(0.0))
    history = logged.fit(X, Y, batch_size=8, verbose=0).history
    assert history["penalty"] == [pytest.approx(0.12)]
    assert history["loss"][0] - history["penalty"][0] == pytest.approx(36.0)


def dense(units, inputs, **arguments):
    return tf_keras.Sequential([layers.Dense(units, input_shape=(inputs,), name="dense", **arguments)])


class Gan(tf_keras.Model):
    """A model with two optimizers, and a loss for each of its two inner models."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = dense(6, 2, kernel_regularizer="l2"), dense(1, 6, kernel_regularizer="l1")
        self.parts = {"generator": self.generator, "discriminator": self.discriminator}

    def compile(self):
        super().compile()
        self.optimizers = [tf_keras.optimizers.SGD(0.1) for _ in range(2)]

    def train_step(self, data):
        noise, losses = tf.ones([8, 2]), {}
        for optimizer, (name, part) in zip(self.optimizers, self.parts.items(), strict=True):
            with tf.GradientTape() as tape:
                real, fake = self.discriminator(data[0]), self.discriminator(self.generator(noise))
                sign = 1.0 if name == "discriminator" else -1.0
                losses[name] = sign * tf.reduce_mean(fake - real) + tf.add_n(part.losses or [0.0])
            gradients = tape.gradient(losses[name], part.trainable_variables)
            optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
        return losses


class Vae(tf_keras.Model):
    """A model with a tracker of its own, and a divergence in addition to the reconstruction error."""

    def __init__(self):
        super().__init__()
        self.parts = {"encoder": dense(4, 6, kernel_regularizer="l2"), "decoder": dense(6, 2, kernel_regularizer="l1")}
        self.tracker = tf_keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, data):
        x = data[0]
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(self.parts["encoder"](x), 2, 1)
            z = mean + tf.exp(0.5 * log_variance) * tf.random.stateless_normal(tf.shape(mean), [1, 2])
            divergence = -0.5 * tf.reduce_mean(1 + log_variance - mean**2 - tf.exp(log_variance))
            loss = tf.reduce_mean((self.parts["decoder"](z) - x) ** 2) + divergence + tf.add_n(self.losses or [0.0])
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


@pytest.mark.parametrize("cls", [Gan, Vae])
def test_models_of_the_guides(cls, tmp_path):
    tf_keras.utils.set_random_seed(0)
    model = cls()
    model.compile() if cls is Gan else model.compile("sgd")
    model.fit(X, Y, verbose=0)
    paths = list(tfk.penalties(model))
    assert len(paths) == 2
    for regularizer in (tfk.L1(0.5) + tfk.GroupLasso(0.1), tfk.L2(100.0)):
        assert tfk.set_regularizers(model, kernel_regularizer=regularizer) == paths
        expected = float(sum(model.losses))
        assert expected == pytest.approx(sum(map(float, tfk.penalties(model).values())))
    history = model.fit(X, Y, batch_size=8, verbose=0).history
    assert sum(history[name][0] for name in history) > 0.5 * expected  # the step has traced the new regularizers
    assert float(sum(model.losses)) != expected  # and trained with them
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[tfk.RegularizationScheduler(lambda epoch: 0.1 * (1 + epoch))])
    for name, part in model.parts.items():
        for suffix in (".keras", ""):
            part.save(tmp_path / f"{name}{suffix}")
            loaded = tf_keras.models.load_model(tmp_path / f"{name}{suffix}")
            assert loaded.layers[-1].kernel_regularizer.get_config() == {"l2": 0.2}
            assert float(sum(loaded.losses)) == pytest.approx(float(sum(part.losses)))
    assert tfk.set_regularizers(model, kernel_regularizer=None) == paths
    model.fit(X, Y, verbose=0)
    assert model.losses == []
