"""Keras 3 on TensorFlow: the functions of `hosts.Host`. Imported only if Keras 3 is."""

from tfk_regularizers._keras.keras3.compiled_loss import is_compiled, join_loss, retrace, split_loss
from tfk_regularizers._keras.keras3.layers import (
    activity_losses,
    as_loss,
    configs_of,
    is_of_keras,
    is_revived,
    regularizer_base,
    set_activity_regularizer,
    set_weight_regularizer,
    takes_activity_regularizer,
    update_bidirectional,
    weight_losses,
    weights_called,
    zero_outputs,
)
from tfk_regularizers._keras.keras3.steps import iterations, print_message
