"""What this package needs of Keras, and all uses of its internals: `keras2` and `keras3`, and what both share."""
