"""The mathematics of L1 and L2: sums over a tensor, with hand-written gradients that save passes over memory."""

import tensorflow as tf

from tfk_regularizers import _execution

# Row lengths for the product in `_total_in_xla`: their speed hardly differs, a divisor of the size leaves no rest.
_ROWS = range(2048, 255, -1)

# In eager, outputs of ever new lengths would be compiled, and their programs kept, one after the other.
_MOST_SHAPES = 64


def result_dtype(x):
    """The dtype of a penalty on x: real, and float32 for halves, whose sums soon pass 65504 or lose their digits."""
    return tf.float32 if x.dtype.size < 4 else x.dtype.real_dtype


def wide(x):
    """x, or x as float32 if it is a half."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def size(x, axis):
    """The size of an axis: a Python int where it is static."""
    static = tf.compat.dimension_value(x.shape[axis])
    # Cut, because forward over forward mode stumbles over the shape of what it differentiates.
    return static if static is not None else tf.shape(tf.stop_gradient(x))[axis]


def row_sums(x):
    """Sums along the last axis, by a product with ones: under XLA on a CPU it is faster than a plain sum, and right."""
    return tf.linalg.matvec(x, tf.ones([size(x, -1)], x.dtype))


def total(x):
    """Σx by plain ops.

    XLA:CPU adds a plain sum one by one, which is wrong in the third digit at 64M elements. Where the size is unknown it
    may be large, and a product with ones is summed in parts there, at no cost elsewhere.
    """
    row = 1
    if x.shape.rank is not None and not x.shape.is_fully_defined():
        for size in reversed(x.shape.as_list()):
            if size is None or row >= 16:
                break
            row *= size
    if row < 16:
        return tf.reduce_sum(x)
    return tf.reduce_sum(row_sums(tf.reshape(x, [-1, row])))


def _total_in_xla(x):
    """Σx for XLA: a product with ones fuses what makes x, uses every core and is summed in parts.

    Each loop that XLA has to generate adds some 35 ms to the compilation, so there is one where there can be.
    """
    size, flat = x.shape.num_elements(), tf.reshape(x, [-1])
    if size <= 2 * _ROWS[0]:
        return tf.tensordot(flat, tf.ones([size], x.dtype), 1)
    row = next((row for row in _ROWS if size % row == 0), _ROWS[0])
    rows = tf.reshape(flat[: size // row * row], [-1, row])
    sums = _total_in_xla(row_sums(rows))
    return sums if size % row == 0 else sums + tf.reduce_sum(flat[size // row * row :])


def _penalty(plain, elements, gradient, one_pass=False):
    """The scalar function Σ elements(x, *factors), run the way that `_execution.route` says.

    `plain` is the same by plain ops alone, for a half as well, and `gradient(x, dy, *factors)` its gradient. Factors
    are numbers: no gradient is computed for them.
    """

    def narrow_gradient(x, dy, *factors):
        return tf.cast(gradient(wide(x), dy, *factors), x.dtype)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(x, *factors):
        return _total_in_xla(elements(wide(x), *factors))

    compiled_gradient = tf.function(narrow_gradient, jit_compile=True, autograph=False)
    _execution.expect_many_shapes(compiled, compiled_gradient)

    def penalty(x, *factors):
        route = _execution.route(x, one_pass)
        if route == "compiled" and tf.executing_eagerly() and compiled.experimental_get_tracing_count() > _MOST_SHAPES:
            route = "custom"
        if route == "plain":
            return plain(x, *factors)
        factors = [tf.constant(factor, result_dtype(x)) for factor in factors]
        forward, backward = (compiled, compiled_gradient) if route == "compiled" else (plain, narrow_gradient)

        @tf.custom_gradient
        def value(x):
            # An eager tape would also record what happens in here; in a graph, forward mode goes through it.
            inside = tf.stop_gradient(x) if tf.executing_eagerly() else x
            return forward(inside, *factors), lambda dy: backward(x, dy, *factors)

        return value(x)

    return penalty


def _plain_half_square_sum(x):
    if x.dtype.is_complex:
        return 0.5 * (total(tf.square(tf.math.real(x))) + total(tf.square(tf.math.imag(x))))
    x = wide(x)
    # One pass, without writing the squares; where the size is unknown, `total` says why not.
    return tf.nn.l2_loss(x) if x.shape.is_fully_defined() else 0.5 * total(tf.square(x))


def _plain_absolute_sum(x):
    return total(tf.abs(wide(x)))


absolute_sum = _penalty(
    plain=_plain_absolute_sum,
    elements=tf.abs,
    gradient=lambda x, dy: dy * tf.sign(x),
)
absolute_sum.__doc__ = "Σ|x|, a scalar of `result_dtype(x)`, and 0 the gradient at 0."

half_square_sum = _penalty(
    plain=_plain_half_square_sum,
    elements=lambda x: 0.5 * tf.square(x),
    gradient=lambda x, dy: dy * x,
    one_pass=True,
)
half_square_sum.__doc__ = "½ Σ|x|², a scalar of `result_dtype(x)`."

elastic_net = _penalty(
    plain=lambda x, l1, l2: l1 * _plain_absolute_sum(x) + l2 * (2.0 * _plain_half_square_sum(x)),
    elements=lambda x, l1, l2: l1 * tf.abs(x) + l2 * tf.square(x),
    gradient=lambda x, dy, l1, l2: dy * l1 * tf.sign(x) + 2.0 * dy * l2 * x,
)
elastic_net.__doc__ = "l1 Σ|x| + l2 Σ|x|² for numbers l1 and l2, in one pass over x, and one more for the gradient."
