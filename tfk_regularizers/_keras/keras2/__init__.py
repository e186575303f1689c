"""tf_keras, which is Keras 2: the functions of `hosts.Host`."""

from tfk_regularizers._keras.keras2.compiled_loss import is_compiled, join_loss, retrace, split_loss
from tfk_regularizers._keras.keras2.layer_regularizers import (
    set_activity_regularizer,
    set_weight_regularizer,
    update_bidirectional,
)
from tfk_regularizers._keras.keras2.layers import (
    activity_losses,
    as_loss,
    configs_of,
    is_of_keras,
    is_revived,
    regularizer_base,
    takes_activity_regularizer,
    weight_losses,
    weights_called,
    zero_outputs,
)
from tfk_regularizers._keras.keras2.steps import iterations, print_message
