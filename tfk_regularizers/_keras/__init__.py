"""The host: every touch of an internal of Keras, each checked, each with its reason."""
