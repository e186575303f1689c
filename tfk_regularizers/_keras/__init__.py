"""All uses of internals of Keras."""
