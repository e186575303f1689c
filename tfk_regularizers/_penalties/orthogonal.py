"""The mathematics of orthogonality: the mean absolute cosine between the rows of a matrix, in bounded memory.

With u the n x d matrix of normalized rows and G = u uᵀ its Gram matrix, the penalty is P = Σ_{i≠j} |Gᵢⱼ| / (n (n - 1)).

*Gradient.* Let S = sign(G) with a zero diagonal. Then Σ_{i≠j} |Gᵢⱼ| = Σᵢⱼ Sᵢⱼ ⟨uᵢ, uⱼ⟩ = ⟨u, S u⟩. S is constant
almost everywhere, so this is a quadratic form: its gradient is 2 S u, its Hessian is v ↦ 2 S v, and nothing comes
after that. Where the gradient is wanted, the value is the inner product of S u with u, and |G| is not needed.

*Two halves.* The pairs between the halves of u make one tile of G, which by symmetry serves both halves. With the pairs
within each half that is 1.75 F (counted as below), and no loop.

*Blocks of rows.* Cut u into an odd number k = 2 h + 1 of blocks of b rows (padded with zero rows, which add nothing).
Pair each block with itself and with the h blocks after it, counted cyclically: so each pair of blocks meets once.

- *The product S v* takes one block i after the other, its tile being T = sign(u_after u_iᵀ), h b x b. By symmetry T
  serves twice: row block i of the product receives Tᵀ v_after, the h blocks after it receive T v_i. What they have
  received so far travels along in a window, whose first block is complete when its turn comes; what has gone around
  is left in the window at the end, and belongs to the first blocks.
- *The value alone* needs no window. It takes all blocks at once, step s = 1 .. h pairing each with the one s after it.

Count in F = n² d, the multiply-adds of the whole Gram matrix. Half of the pairs are 0.5 F for G, and 0.5 F each for
both ways in which T serves: 0.5 F for the value, 1.5 F with the gradient. (Keeping G and letting TensorFlow
differentiate takes 1 F and 3 F.) One block, h = 0, is the Gram matrix itself: 1 F and 2 F, and no loop.

References: Rabe and Staats, "Self-attention Does Not Need O(n²) Memory", 2021, and Dao et al., "FlashAttention", 2022,
for gathering what is needed of an n x n matrix of products tile by tile instead of storing it.
"""

from types import MappingProxyType
from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.annotations import Factor, FactorAttribute, Mode
from tfk_regularizers._penalties.arguments import row_or_column_mode
from tfk_regularizers._penalties.base import Penalty
from tfk_regularizers._penalties.factors import checked_factor, scaled
from tfk_regularizers._penalties.inputs import matrix
from tfk_regularizers._penalties.reductions import row_sums, size, wide
from tfk_regularizers._penalties.shards import whole

_EPSILON = 1e-12  # as in tf.math.l2_normalize


class OrthogonalRegularizer(Penalty, autograph=False):
    """Pushes the rows (or columns) of a kernel to be orthogonal to each other.

    Formula: `factor` times the mean over all unordered pairs i < j of `|⟨x̂ᵢ, x̂ⱼ⟩|`, where the x̂ are the rows (or
    columns) of the matrix x divided by their L2 norms, as `tf.math.l2_normalize` does (`x * rsqrt(max(Σx², 1e-12))`).
    With fewer than two rows there is no pair, and the penalty is 0. Gradient: that of the formula, with `sign(0) = 0`,
    so a zero row stays where it is; for a row shorter than 1e-6 it is the one of `x * 1e6`.

    A parameter server strategy that partitions a variable calls its regularizer once a shard: the first pays for the
    whole, which a worker puts together for that, and the others give 0.

    Above 1024 rows, or half of the columns if that is more, the pairs are computed in blocks of rows: in two halves for
    the gradient of up to 4096 rows and four times the columns, in more blocks otherwise. (On a GPU or a TPU there are
    blocks above 8192 rows, or twice the columns, and no halves.) Time for n rows of d elements: 0.5 n² d multiply-adds
    for the value and 1.5 n² d with the gradient; in one block 1 and 2, in two halves 1.75. Peak memory: about
    n t + 5 n d numbers, with t ≤ 512 rows in a block on a CPU and t ≤ d in a half; it does not grow with n². (Under
    DTensor and in forward mode there is one Gram matrix, and it takes about 3 n².) Where a kernel is large,
    `SampledOrthogonalRegularizer` takes a fraction of the time.

    A kernel of more than two axes is taken as the matrix (product of all axes but the last, last axis). What is made
    orthogonal:

    | layer | kernel | `mode="rows"` | `mode="columns"` |
    |---|---|---|---|
    | `Dense` | (inputs, units) | the weights that leave an input | the units |
    | `Embedding` | (tokens, dimensions) | the tokens' vectors | the dimensions |
    | `Conv1D/2D/3D` | (*size, channels, filters) | what leaves a tap and channel | the filters |
    | `Conv2D/3DTranspose` | (*size, filters, channels) | what leads to a tap and filter | the input channels |
    | `DepthwiseConv1D/2D` | (*size, channels, multiplier) | what leaves a tap and channel | the multipliers |
    | `SeparableConv1D/2D`, depthwise | (*size, channels, multiplier) | the same | the same |
    | `SeparableConv1D/2D`, pointwise | (1, …, channels * multiplier, filters) | what leaves a channel | the filters |
    | `SimpleRNN`, `GRU`, `LSTM` | (inputs, gates * units) | the weights that leave an input | the gates of the units |
    | the same, recurrent | (units, gates * units) | the weights that leave a unit | the gates of the units |
    | `MultiHeadAttention`, query, key, value | (features, heads, size) | features of a head | the entries of a head |
    | `MultiHeadAttention`, output | (heads, size, features) | entries of the heads | the output features |

    Cosines are the choice where the directions alone should differ, whatever the lengths, and where a small overlap
    should go to exactly zero: scale does not matter, and every pair is pulled alike. `SoftOrthogonalRegularizer` takes
    squares of inner products, which also pull the lengths to 1.

    Differs from tf_keras: kernels of more than two axes, single rows and unknown shapes work, float16 and bfloat16 are
    computed in float32 and give a float32 result.

    Args:
        factor: A finite number, the factor of the penalty. Defaults to 0.01. Mutable, and read at each call. Or a
            variable, as for `L1`.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.

    Raises:
        ValueError: If `factor` is not a finite number or `mode` is none of the two; when called, if x has fewer than
            two axes.
        TypeError: When called, if x is not of a floating dtype.

    >>> OrthogonalRegularizer(factor=0.5, mode="columns")
    OrthogonalRegularizer(factor=0.5, mode='columns')
    >>> float(OrthogonalRegularizer(factor=1.0)([[3.0, 0.0], [0.0, 2.0]]))
    0.0
    >>> float(OrthogonalRegularizer(factor=1.0)([[1.0, 0.0], [-5.0, 0.0]]))
    1.0

    References:
        Brock et al., "Neural Photo Editing with Introspective Adversarial Networks", 2017; Rodríguez et al.,
        "Regularizing CNNs with Locally Constrained Decorrelations", 2017.
    """

    factor_names = ("factor",)
    factor: FactorAttribute
    mode: Mode
    _checks = MappingProxyType({"mode": row_or_column_mode})

    def __init__(self, factor: Factor = 0.01, mode: Mode = "rows") -> None:
        self.factor = checked_factor("factor", factor)
        self.mode = row_or_column_mode(mode)

    def __call__(self, inputs: Any) -> tf.Tensor:
        inputs = whole("OrthogonalRegularizer", inputs)
        if inputs is None:
            return tf.zeros([])
        x = matrix("OrthogonalRegularizer", inputs)
        if row_or_column_mode(self.mode) == "columns":
            x = tf.transpose(x)
        return scaled(self.factor, mean_absolute_cosine(x))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"mode": self.mode}


def mean_absolute_cosine(x):
    """Mean over the unordered pairs i < j of |⟨x̂ᵢ, x̂ⱼ⟩|, x̂ the L2-normalized rows of the matrix x; 0 without a pair."""
    if not execution.may_loop(x):
        cosines = _by_plain_ops(x)
    else:
        cosines = _in_few_ops(_normalized(x)[0]) if execution.is_small(x) else _in_blocks(x)
    n = tf.cast(size(x, 0), cosines.dtype)
    return cosines / tf.maximum(n * (n - 1.0), 1.0)


def _normalized(x):
    """The rows of x at length 1, the squares of their lengths, and by what they were multiplied."""
    x = wide(x)
    squares = tf.reduce_sum(tf.square(x), axis=1, keepdims=True)
    inverse = tf.math.rsqrt(tf.maximum(squares, _EPSILON))
    return x * inverse, squares, inverse


def _by_plain_ops(x):
    """⟨u, S u⟩ by the whole of G, and by what DTensor follows: no diagonal is set there, and no rows are transposed."""
    u, *_ = _normalized(x)
    gram = tf.matmul(u, tf.transpose(u))
    gram = tf.abs(gram - gram * execution.identity_beside(gram))
    return tf.reduce_sum(gram if execution.under_dtensor() else row_sums(gram))


@tf.custom_gradient
def _in_few_ops(u):
    """⟨u, S u⟩ by the whole of G, whose number of operations is what a small matrix costs."""
    gram = _gram(u)
    value = tf.abs(gram) if tf.executing_eagerly() else row_sums(tf.abs(gram))
    return tf.reduce_sum(value), lambda dy: 2.0 * dy * tf.matmul(tf.sign(gram), u)


def _in_blocks(x):
    """⟨u, S u⟩, right to any order of differentiation in reverse mode.

    What goes into a loop is cut from an eager tape, which would record the loop's inside; under XLA what comes out is
    cut too, or it would try to differentiate the loop. A gradient is built in a graph of its own: what it hands on to
    the next order has to be made a tensor of that graph, here. In a SavedModel the loop itself is left to
    differentiate. Between value and gradient x is kept, which is there anyway, and not u.
    """
    cut = tf.stop_gradient if execution.under_xla() else execution.inside
    here, wanted = tf.identity, execution.wants_gradient(x)  # in the graph of a gradient, in eager an op like others
    count = execution.block_count(x, with_gradient=wanted)

    def product(u, v, *known):  # S v: linear in v, constant in u
        @tf.custom_gradient
        def differentiable(u, v, *known):  # an argument, or a graph of TensorFlow 1 finds the variable behind it
            result = here(*known) if known else cut(_product(cut(u), cut(v), count)[1])
            return result, lambda w: (tf.zeros_like(u), product(here(u), w), *(None for _ in known))

        return _product(u, v, count)[1] if execution.saving() else differentiable(u, v, *known)

    @tf.custom_gradient
    def value(x):
        u = cut(_normalized(cut(x))[0])
        cosines, *known = map(cut, _product(u, u, count) if wanted else [_value(u, count)])

        def gradient(dy):
            # Not before, to lie there meanwhile; and from there on x instead of u, which halves the memory on a GPU.
            with tf.control_dependencies(filter(execution.is_of_this_graph, known)):
                wide_x = wide(here(x))
                u, squares, inverse = _normalized(wide_x)
            by_u = 2.0 * dy * product(u, u, *known)
            along = row_sums(wide_x * by_u)[:, tf.newaxis] * inverse * inverse * inverse  # would change a row's length
            return tf.cast(inverse * by_u - tf.where(squares >= _EPSILON, along, 0.0) * wide_x, x.dtype)

        return cosines, gradient

    return value(execution.here(x))


def _blocks(x, count):
    """The matrix x as so many blocks of as many rows each, with rows of zeros at its end."""
    n, d = size(x, 0), size(x, 1)
    multiple = 1 if isinstance(count, int) and count == 1 else execution.block_multiple(x)
    rows = -(-n // (count * multiple)) * multiple
    return tf.reshape(tf.pad(x, [[0, count * rows - n], [0, 0]]), [count, rows, d])


def _product(u, v, count):
    """(⟨u, S v⟩, S v), one block of rows after the other."""
    if isinstance(count, int) and count == 2:
        return _product_of_halves(u, v)
    n, d, is_u = size(u, 0), size(u, 1), v is u
    u = _blocks(u, count)
    v, rows = u if is_u else _blocks(v, count), size(u, 1)
    if isinstance(count, int) and count == 1:
        gram = _gram(u)
        product = tf.matmul(tf.sign(gram), v)
        is_wide = isinstance(d, int) and 1 < rows <= d
        terms = tf.abs(gram) if is_wide else u * product  # whichever is the smaller
        return tf.reduce_sum(row_sums(terms)), tf.reshape(product, [n, d])
    ahead = 1 + tf.range(count // 2)

    def step(i, sums, window, product):
        after = (i + ahead) % count
        own_u, own_v, u_after = u[i], v[i], tf.gather(u, after)
        v_after = u_after if is_u else tf.gather(v, after)
        # Products of three axes: on a CPU they are faster than those of two with `transpose_b`.
        tile = tf.reshape(tf.sign(tf.matmul(u_after, own_u[tf.newaxis], transpose_b=True)), [-1, rows])
        inside = tf.matmul(tf.sign(_gram(own_u[tf.newaxis])[0]), own_v)
        across = tf.matmul(tile, tf.reshape(v_after, [-1, d]), transpose_a=True)
        # Gathered, which copies it: a slice of the window, kept in the product, would keep the whole window.
        product = product.write(i, tf.gather(window, 0) + inside + across)
        window = window[1:] + tf.reshape(tf.matmul(tile, own_v), tf.shape(v_after))
        window = tf.concat([window, tf.zeros_like(own_v)[tf.newaxis]], 0)
        return i + 1, sums + row_sums(own_u * (inside + 2.0 * across)), window, product

    start = [0, tf.zeros([rows], u.dtype), tf.zeros_like(u[: count // 2 + 1])]
    start.append(tf.TensorArray(u.dtype, count, element_shape=u.shape[1:]))
    _, sums, window, product = tf.while_loop(lambda i, *_: i < count, step, start, parallel_iterations=1)
    del start  # or it would keep the parts of the product beside the whole, in eager
    product = product.stack()
    product = tf.concat([product[: count // 2 + 1] + window, product[count // 2 + 1 :]], 0)
    return tf.reduce_sum(sums), tf.reshape(product, [-1, d])[:n]


def _product_of_halves(u, v):
    """(⟨u, S v⟩, S v), where the tile of the pairs between two halves of the rows serves both halves."""
    half = size(u, 0) // 2
    (a, b), (v_a, v_b) = (u[:half], u[half:]), (v[:half], v[half:])
    between = tf.sign(tf.matmul(a, b, transpose_b=True))
    upper = tf.matmul(tf.sign(_gram(a)), v_a) + tf.matmul(between, v_b)
    lower = tf.matmul(tf.sign(_gram(b)), v_b) + tf.matmul(between, v_a, transpose_a=True)
    total = tf.reduce_sum(row_sums(a * upper)) + tf.reduce_sum(row_sums(b * lower))
    return total, tf.concat([upper, lower], 0)


def _value(u, count):
    """⟨u, S u⟩, all blocks of rows at once with the ones after them."""
    u = _blocks(u, count)
    sums, rows = row_sums(tf.abs(_gram(u))), size(u, 1)
    if not isinstance(rows, int) or rows < 2:
        sums += tf.minimum(row_sums(tf.square(u)), 0.0)  # 0, or NaN of a row without a pair, which is in no product
    if isinstance(count, int) and count == 1:
        return tf.reduce_sum(sums)
    around = tf.concat([u, u[: count // 2]], 0)

    def step(s, sums):
        # The size as XLA takes it for a constant: not as numbers that the loop carries.
        gram = tf.matmul(u, tf.slice(around, [s, 0, 0], tf.shape(u)), transpose_b=True)
        return s + 1, sums + 2.0 * row_sums(tf.abs(gram))

    return tf.reduce_sum(tf.while_loop(lambda s, _: s <= count // 2, step, (1, sums), parallel_iterations=1)[1])


def _gram(u):
    """Products of all pairs of rows, within each block if there are several, zero on the diagonal."""
    zeros = tf.zeros([size(u, axis) for axis in range(u.shape.rank - 1)], u.dtype)
    return tf.linalg.set_diag(tf.matmul(u, u, transpose_b=True), zeros)
