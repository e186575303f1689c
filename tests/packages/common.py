"""Checks that a model of any other package must pass."""

import pytest
import tensorflow as tf

import tfk_regularizers as tfk


def by_path(model):
    return {path: float(value) for path, value in tfk.penalties(model).items()}


def history_of(model, x, y, epochs=1, callbacks=()):
    """The history of a `fit` on one batch."""
    count = len(tf.nest.flatten(x)[0])
    return model.fit(x, y, batch_size=count, epochs=epochs, verbose=0, callbacks=[*callbacks]).history


def check_everything(model, x, y, count, *, callbacks=(), keyword="kernel_regularizer"):
    """Remove, set, schedule, log and replace the penalties of `count` weights of a model with learning rate 0."""

    def loss():  # by `evaluate` after a training step, which changes nothing
        history_of(model, x, y, callbacks=callbacks)
        return model.evaluate(x, y, batch_size=len(tf.nest.flatten(x)[0]), verbose=0, return_dict=True)["loss"]

    tfk.set_regularizers(model, **{keyword: None})
    assert by_path(model) == {}
    paths = tfk.set_regularizers(model, **{keyword: tfk.L2(0.5)})
    assert len(paths) == count
    assert list(by_path(model)) == paths
    penalty = sum(by_path(model).values())
    assert penalty > 0.01
    with_penalty = loss()
    assert tfk.set_regularizers(model, **{keyword: None}) == paths
    assert with_penalty - loss() == pytest.approx(penalty, rel=0.02)
    others = float(sum(model.losses))

    tfk.set_regularizers(model, **{keyword: tfk.L2(0.5)})
    scheduler = tfk.RegularizationScheduler(lambda epoch: 0.5 * (1 + epoch), "l2")
    with tfk.log_penalties(model, per_weight=True):
        history = history_of(model, x, y, 2, [*callbacks, scheduler])
        assert history["l2"] == [0.5, 1.0]
        assert history["penalty"] == pytest.approx([penalty + others, 2 * penalty + others], rel=1e-4)
        assert [sum(history[path][epoch] for path in paths) for epoch in (0, 1)] == pytest.approx(
            [penalty, 2 * penalty]
        )

        assert tfk.set_regularizers(model, **{keyword: tfk.L1(0.25)}) == paths
        history = history_of(model, x, y, callbacks=callbacks)
        assert {path: history[path][0] for path in paths} == pytest.approx(by_path(model))
        assert history["data_loss"][0] + history["penalty"][0] == pytest.approx(history["loss"][0])
    assert tfk.set_regularizers(model, **{keyword: None}) == paths
    assert by_path(model) == {}
