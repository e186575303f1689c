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
- *The value without its gradient* needs no window. It takes all blocks at once, step s = 1 .. h pairing each with the
  one s after it.

Count in F = n² d, the multiply-adds of the whole Gram matrix. Half of the pairs are 0.5 F for G, and 0.5 F each for
both ways in which T serves: 0.5 F for the value, 1.5 F with the gradient. (Keeping G and letting TensorFlow
differentiate takes 1 F and 3 F.) One block, h = 0, is the Gram matrix itself: 1 F and 2 F, and no loop.

References: Rabe and Staats, "Self-attention Does Not Need O(n²) Memory", 2021, and Dao et al., "FlashAttention", 2022,
for gathering what is needed of an n x n matrix of products tile by tile instead of storing it.
"""

from typing import Any

import tensorflow as tf

from tfk_regularizers._penalties import execution
from tfk_regularizers._penalties.arguments import Argument, Factor, FactorLike, Mode, check_mode
from tfk_regularizers._penalties.base import Penalty, penalty_method
from tfk_regularizers._penalties.factors import scale
from tfk_regularizers._penalties.inputs import as_matrix
from tfk_regularizers._penalties.reductions import promote_half, row_sums, size
from tfk_regularizers._penalties.shards import resolve_shards
from tfk_regularizers._tensorflow_internals import is_compiled_by_xla, is_recorded

_EPSILON = 1e-12  # as in tf.math.l2_normalize


class OrthogonalRegularizer(Penalty):
    """Pushes the rows (or columns) of a kernel to be orthogonal to each other.

    Formula: `factor` times the mean over all unordered pairs i < j of `|⟨x̂ᵢ, x̂ⱼ⟩|`, where the x̂ are the rows (or
    columns) of the matrix x divided by their L2 norms, as `tf.math.l2_normalize` does (`x * rsqrt(max(Σx², 1e-12))`).
    With fewer than two rows there is no pair, and the penalty is 0. Gradient: that of the formula, with `sign(0) = 0`,
    so a zero row stays where it is; for a row shorter than 1e-6 it is the one of `x * 1e6`.

    If a parameter server strategy has partitioned a variable, the penalty of the first shard is that of the whole
    variable, which a worker concatenates, and that of the others is 0.

    Above 1024 rows, or half of the columns if that is more, the pairs are computed in blocks of rows: in two halves for
    the gradient of up to 4096 rows and four times the columns, in more blocks otherwise. (On a GPU or a TPU there are
    blocks above 8192 rows, or twice the columns, and no halves.) Time for n rows of d elements: 0.5 n² d multiply-adds
    for the value and 1.5 n² d with the gradient; in one block 1 and 2, in two halves 1.75. Peak memory: about
    n t + 5 n d numbers, with t ≤ 512 rows in a block on a CPU and t ≤ d in a half; it does not grow with n². (In
    forward mode there is one Gram matrix, and it takes about 3 n².) For a large kernel, `SampledOrthogonalRegularizer`
    takes a fraction of the time. On a DTensor mesh only L1, L2 and L1L2 work. The losses of a loaded SavedModel have
    first derivatives only, if there are blocks: TensorFlow does not save custom gradients of gradients.

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

    Choose cosines if only the directions should differ, whatever the lengths, and if small overlaps should go to zero:
    the scale does not matter, and every pair is pulled alike. `SoftOrthogonalRegularizer` takes squares of inner
    products, which also pull the lengths to 1.

    Differs from Keras's own: kernels of more than two axes, single rows and unknown shapes work, float16 and bfloat16
    are computed in float32 and give a float32 result.

    Args:
        factor: The factor of the penalty, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.

    Raises:
        ValueError: If `factor` is not a finite number or `mode` is neither of the two; when called, if x has fewer than
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

    factor: Factor = Factor()
    mode = Argument[Mode, Mode](check_mode)

    def __init__(self, factor: FactorLike = 0.01, mode: Mode = "rows") -> None:
        self.factor = factor
        self.mode = mode

    @penalty_method
    def __call__(self, inputs: Any) -> tf.Tensor:
        inputs = resolve_shards(inputs)
        if inputs is None:
            return tf.zeros([])
        x = as_matrix("OrthogonalRegularizer", inputs)
        if self.mode == "columns":
            x = tf.transpose(x)
        return scale(self.factor, mean_absolute_cosine(x))


def mean_absolute_cosine(x):
    """Mean over the unordered pairs i < j of |⟨x̂ᵢ, x̂ⱼ⟩|, x̂ the L2-normalized rows of the matrix x; 0 without a pair."""
    if not execution.supports_custom_gradients(x):  # by operations that forward mode follows at any shape
        u, *_ = _normalize(x)
        gram = tf.matmul(u, u, transpose_b=True)
        cosines = tf.reduce_sum(tf.abs(gram - gram * tf.eye(size(gram, 0), dtype=gram.dtype)))
    elif execution.prefers_single_gram(x):
        cosines = _sum_by_single_gram(_normalize(x)[0])
    else:
        cosines = _sum_by_blocks(x)
    n = tf.cast(size(x, 0), cosines.dtype)
    return cosines / tf.maximum(n * (n - 1.0), 1.0)


def _normalize(x):
    """The rows of x at length 1, the squares of their lengths, and the inverses of their lengths."""
    x = promote_half(x)
    squares = tf.reduce_sum(tf.square(x), axis=1, keepdims=True)
    inverse = tf.math.rsqrt(tf.maximum(squares, _EPSILON))
    return x * inverse, squares, inverse


@tf.custom_gradient
def _sum_by_single_gram(u):
    """⟨u, S u⟩ by the whole of G, in few operations: their number is what a small matrix costs."""
    gram = _off_diagonal_gram(u)
    value = tf.abs(gram) if tf.executing_eagerly() else row_sums(tf.abs(gram))
    return tf.reduce_sum(value), lambda upstream: 2.0 * upstream * tf.matmul(tf.sign(gram), u)


def _sum_by_blocks(x):
    """⟨u, S u⟩, right to any order of differentiation in reverse mode.

    What enters a loop is detached from an eager tape, which would record the loop's inside; under XLA what leaves it is
    detached too, or TensorFlow would differentiate the loop. A gradient is built in a graph of its own, and what the
    next order reads is captured there. Between value and gradient x is kept, which exists anyway, and not u.
    """
    capture, with_gradient = tf.identity, is_recorded(x)
    count = execution.block_count(x, with_gradient)
    has_loop = not isinstance(count, int) or count > 2
    detach = tf.stop_gradient if has_loop and is_compiled_by_xla() else execution.detach_from_eager_tape

    def sign_product(u, v, *cached):  # S v: linear in v, constant in u
        @tf.custom_gradient
        def differentiable(u, v, *cached):  # arguments, or a TensorFlow 1 graph finds the variable behind them
            product = capture(*cached) if cached else detach(_product(detach(u), detach(v), count)[1])
            return product, lambda w: (tf.zeros_like(u), sign_product(capture(u), w), *(None for _ in cached))

        return differentiable(u, v, *cached)

    @tf.custom_gradient
    def differentiable(x):
        u = detach(_normalize(detach(x))[0])
        cosines, *cached = map(detach, _product(u, u, count) if with_gradient else [_value(u, count)])

        def gradient(upstream):
            # u is computed when the gradient needs it, and not kept meanwhile.
            with tf.control_dependencies(filter(execution.is_in_current_graph, cached)):
                wide_x = promote_half(capture(x))
                u, squares, inverse = _normalize(wide_x)
            by_u = 2.0 * upstream * sign_product(u, u, *cached)
            radial = row_sums(wide_x * by_u)[:, tf.newaxis] * inverse * inverse * inverse  # changes lengths only
            return tf.cast(inverse * by_u - tf.where(squares >= _EPSILON, radial, 0.0) * wide_x, x.dtype)

        return cosines, gradient

    return differentiable(execution.capture_in_current_graph(x))


def _blocks(x, count):
    """The matrix x as `count` blocks of equally many rows, padded with rows of zeros."""
    n, d = size(x, 0), size(x, 1)
    row_multiple = 1 if isinstance(count, int) and count == 1 else execution.block_row_multiple(x)
    rows = -(-n // (count * row_multiple)) * row_multiple
    return tf.reshape(tf.pad(x, [[0, count * rows - n], [0, 0]]), [count, rows, d])


def _product(u, v, count):
    """(⟨u, S v⟩, S v), one block of rows after the other."""
    if isinstance(count, int) and count == 2:
        return _product_of_halves(u, v)
    n, d, is_u = size(u, 0), size(u, 1), v is u
    u = _blocks(u, count)
    v, rows = u if is_u else _blocks(v, count), size(u, 1)
    if isinstance(count, int) and count == 1:
        gram = _off_diagonal_gram(u)
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
        inside = tf.matmul(tf.sign(_off_diagonal_gram(own_u[tf.newaxis])[0]), own_v)
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
    """(⟨u, S v⟩, S v) by two halves of the rows. The tile of the pairs between them serves both."""
    half = size(u, 0) // 2
    (a, b), (v_a, v_b) = (u[:half], u[half:]), (v[:half], v[half:])
    between = tf.sign(tf.matmul(a, b, transpose_b=True))
    upper = tf.matmul(tf.sign(_off_diagonal_gram(a)), v_a) + tf.matmul(between, v_b)
    lower = tf.matmul(tf.sign(_off_diagonal_gram(b)), v_b) + tf.matmul(between, v_a, transpose_a=True)
    total = tf.reduce_sum(row_sums(a * upper)) + tf.reduce_sum(row_sums(b * lower))
    return total, tf.concat([upper, lower], 0)


def _value(u, count):
    """⟨u, S u⟩. Step s multiplies all blocks of rows at once, each with the one s places after it."""
    u = _blocks(u, count)
    sums, rows = row_sums(tf.abs(_off_diagonal_gram(u))), size(u, 1)
    if not isinstance(rows, int) or rows < 2:
        sums += tf.minimum(row_sums(tf.square(u)), 0.0)  # 0, or NaN for the NaN of a row that has no pair
    if isinstance(count, int) and count == 1:
        return tf.reduce_sum(sums)
    around = tf.concat([u, u[: count // 2]], 0)

    def step(s, sums):
        # `tf.shape` here is a constant to XLA. Sizes from outside the loop would be variables of it.
        gram = tf.matmul(u, tf.slice(around, [s, 0, 0], tf.shape(u)), transpose_b=True)
        return s + 1, sums + 2.0 * row_sums(tf.abs(gram))

    return tf.reduce_sum(tf.while_loop(lambda s, _: s <= count // 2, step, (1, sums), parallel_iterations=1)[1])


def _off_diagonal_gram(u):
    """The Gram matrix of the rows, or of those of each block, with zeros on the diagonal."""
    zeros = tf.zeros([size(u, axis) for axis in range(u.shape.rank - 1)], u.dtype)
    return tf.linalg.set_diag(tf.matmul(u, u, transpose_b=True), zeros)
