"""All uses of Keras's internals: `keras2` for tf_keras, `keras3` for Keras 3, and modules that both share."""
