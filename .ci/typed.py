"""Code as users write it: `check_types.py` compares the types that the checkers reveal with the comments.

Each line with `type: ignore` contains a mistake that the checkers must find.
"""

import tensorflow as tf
import tf_keras
from typing_extensions import reveal_type

import tfk_regularizers as tfk

strength = tf.Variable(tf.constant(0.0), trainable=False)
l1 = tfk.L1(strength)
l2 = tfk.L2(None)
both = tfk.l1_l2(1e-4, l2=1)
columns = tfk.OrthogonalRegularizer(0.01, mode="columns")
sampled = tfk.SampledOrthogonalRegularizer(sample_size=512)
soft = tfk.SoftOrthogonalRegularizer(0.01, diagonal=False)
lasso = tfk.GroupLasso(0.01, mode="rows")
terms = tfk.Sum([lasso, soft, sampled])


@tf_keras.utils.register_keras_serializable("typed")
class Cauchy(tfk.Penalty):
    factor = tfk.Factor()
    power = tfk.Argument[int, int](int)

    def __init__(self, factor: float = 0.01, power: int = 2) -> None:
        self.factor = factor
        self.power = power

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.factor * tf.reduce_sum(tf.math.log1p(tf.abs(x) ** self.power))


several = sum([l1 + columns, Cauchy(0.1), both, terms])
layer = tf_keras.layers.Dense(3, kernel_regularizer=several, bias_regularizer=tfk.l2(0.5))
model = tf_keras.Sequential([layer, tf_keras.layers.Dense(2, kernel_regularizer="l2")])
model.build((None, 4))
paths = tfk.set_regularizers(model, kernel_regularizer="l1_l2", where=lambda layer: layer.units == 3)
values = tfk.penalties(model)
model.compile("sgd", "mse")
decay = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.5)
warm_up = tfk.RegularizationScheduler(lambda epoch: min(epoch / 10, 1.0), factor="l1", where=lambda layer: layer.built)
callbacks = [warm_up, tfk.RegularizationScheduler(decay, "l2", verbose=1)]
with tfk.log_penalties(model, per_weight=True) as log:
    model.fit(tf.ones([2, 4]), tf.ones([2, 2]), callbacks=callbacks)
tfk.log_penalties(model).close()

reveal_type(l2)  # L2
reveal_type(tfk.l1(0.1))  # L1
reveal_type(both)  # L1L2
reveal_type(tfk.L2.from_weight_decay(1e-4))  # L2
reveal_type(l2 + columns)  # Penalty
reveal_type(terms)  # Sum
reveal_type(Cauchy(0.1))  # Cauchy
reveal_type(tfk.orthogonal_regularizer())  # OrthogonalRegularizer
reveal_type(l2(tf.ones([2])))  # Tensor
reveal_type(values)  # dict[str, Tensor]
reveal_type(paths)  # list[str]
reveal_type(soft.diagonal)  # bool
reveal_type(sampled.get_config())  # dict[str, Any]
reveal_type(warm_up)  # RegularizationScheduler
reveal_type(log)  # PenaltyLog
reveal_type(Cauchy(0.1).power)  # int
reveal_type(tfk.get(l2))  # L2
reveal_type(tfk.get(None))  # None
reveal_type(tfk.serialize(l2))  # dict[str, Any]
reveal_type(tfk.serialize(None))  # None

l2.l2 = 0.5
l2.l2 += 0.5
l2.l2 = strength
columns.mode = "rows"
custom: tf_keras.regularizers.Regularizer = tfk.deserialize(tfk.serialize(l2), custom_objects={"Mine": Cauchy})
mine: tfk.Regularizer = tfk.get("l1_l2")
tfk.unregister()
tfk.register()

tfk.L2("x")  # type: ignore
tfk.OrthogonalRegularizer(factor="x")  # type: ignore
tfk.GroupLasso(mode="cols")  # type: ignore
tfk.SoftOrthogonalRegularizer(diagonal="no")  # type: ignore
l2.l2 = "x"  # type: ignore
columns.mode = "cols"  # type: ignore
tfk.set_regularizers(model, where=3, kernel_regularizer="l2")  # type: ignore
tfk.set_regularizers(model, kernel_regularizer=0.01)  # type: ignore
tfk.L1(l1=0.1, l2=[0.2])  # type: ignore
tfk.RegularizationScheduler(0.1)  # type: ignore
tfk.log_penalties(model, per_weight="yes")  # type: ignore
Cauchy(0.1).power = "x"  # type: ignore
