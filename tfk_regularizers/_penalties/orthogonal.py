"""Orthogonality: the mean absolute cosine between the rows of a matrix, in bounded memory.

With u the n x d matrix of normalized rows and G = u uᵀ its Gram matrix, the penalty is P = Σ_{i≠j} |Gᵢⱼ| / (n (n - 1)).

*Gradient.* Let S = sign(G) with a zero diagonal. Then Σ_{i≠j} |Gᵢⱼ| = Σᵢⱼ Sᵢⱼ ⟨uᵢ, uⱼ⟩ = ⟨u, S u⟩. S is constant
almost everywhere, so this is a quadratic form: its gradient is 2 S u, its Hessian is v ↦ 2 S v, and all higher
derivatives are 0. If the gradient is computed, the value is the inner product of S u with u, and |G| is not needed.

*Two halves.* The pairs between the halves of u form one tile of G, which by symmetry is used for both halves. With the
pairs within each half, this takes 1.75 F (counted as below), without a loop.

*Blocks of rows.* Cut u into an odd number k = 2 h + 1 of blocks of b rows (padded with zero rows, which add nothing).
Pair each block with itself and with the h blocks after it, cyclically, so that each pair occurs once.

- *The product S v* is computed one block i at a time, with the tile T = sign(u_after u_iᵀ) of h b x b. By symmetry T is
  used twice: block i of the product receives Tᵀ v_after, and the h blocks after it receive T v_i. A window holds the
  partial sums of blocks i to i + h. Before step i, its first block has the sums of all earlier steps; at the end, it
  holds what blocks 0 to h still lack.
- *The value without the gradient* needs no window. Step s = 1 .. h pairs every block with the one s places after it.

Let F = n² d be the multiply-adds of the whole Gram matrix. Half of the pairs take 0.5 F for G, and 0.5 F for each of
the two uses of T: 0.5 F for the value, and 1.5 F with the gradient. (TensorFlow's own gradient of G takes 1 F and 3 F.)
One block, h = 0, is the Gram matrix itself: 1 F and 2 F, without a loop.

References: Rabe and Staats, "Self-attention Does Not Need O(n²) Memory", 2021, and Dao et al., "FlashAttention", 2022,
for computing an n x n matrix of products tile by tile instead of storing it.
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
    r"""Penalizes the cosines between rows (or columns), which makes them orthogonal to each other.

    $$\text{factor} \cdot \frac{2}{n (n - 1)} \sum_{i < j} |\langle \hat x_i, \hat x_j \rangle|$$

    The hats mark the n rows (or columns) of the matrix x after division by their L2 norms, as in
    `tf.math.l2_normalize`. The penalty is the mean of the absolute cosines of all pairs, and zero if there are fewer
    than two rows. The gradient follows from it, with `sign(0) = 0`; it is zero for a row of zeros.

    Only directions count, not norms, and every pair is pulled equally, however small its cosine. To pull norms to 1 as
    well, use `SoftOrthogonalRegularizer`. For large kernels, `SampledOrthogonalRegularizer` takes a fraction of the
    time.

    A kernel with more than two axes is reshaped to a matrix whose columns are its last axis. The vectors that are made
    orthogonal are:

    | layer | kernel | `mode="rows"` | `mode="columns"` |
    |---|---|---|---|
    | `Dense` | (inputs, units) | outgoing weights of each input | the units |
    | `Embedding` | (tokens, dimensions) | the tokens | the dimensions |
    | `Conv1D/2D/3D` | (*size, channels, filters) | each position and channel | the filters |
    | `Conv2D/3DTranspose` | (*size, filters, channels) | each position and filter | the input channels |
    | `DepthwiseConv1D/2D` | (*size, channels, multiplier) | each position and channel | the multipliers |
    | `SeparableConv1D/2D`, depthwise | (*size, channels, multiplier) | each position and channel | the multipliers |
    | `SeparableConv1D/2D`, pointwise | (1, …, channels * multiplier, filters) | each channel | the filters |
    | `SimpleRNN`, `GRU`, `LSTM` | (inputs, gates * units) | outgoing weights of each input | each gate's units |
    | the same, recurrent | (units, gates * units) | outgoing weights of each unit | each gate's units |
    | `MultiHeadAttention`, query/key/value | (features, heads, size) | each feature and head | the entries of a head |
    | `MultiHeadAttention`, output | (heads, size, features) | each entry of each head | the output features |

    Memory is linear in n, because kernels with many rows are computed in blocks of rows. For n rows of d elements, the
    value takes 0.5 to 1 n² d multiply-adds, and 1.5 to 2 n² d with the gradient. Forward-mode differentiation uses n²
    memory.

    If a parameter server strategy partitions the variable, the first shard returns the whole penalty and the others 0.
    DTensor is not supported. The losses of a loaded SavedModel have no second derivatives where the kernel is computed
    in blocks.

    Args:
        factor: The factor, a finite number or a variable: see `Factor`. Defaults to 0.01.
        mode: `"rows"` or `"columns"`. Defaults to `"rows"`.

    Raises:
        ValueError: If `factor` is not a finite number, or if `mode` is invalid. When called: if x has fewer than two
            axes.
        TypeError: When called: if x is not of a floating dtype.

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
    """The mean of |⟨x̂ᵢ, x̂ⱼ⟩| over pairs i < j of the L2-normalized rows x̂ of the matrix x; 0 without a pair."""
    if not execution.supports_custom_gradients(x):  # forward mode needs plain operations
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
    """The rows of x divided by their norms, the squares of the norms, and the inverses of the norms."""
    x = promote_half(x)
    squares = tf.reduce_sum(tf.square(x), axis=1, keepdims=True)
    inverse = tf.math.rsqrt(tf.maximum(squares, _EPSILON))
    return x * inverse, squares, inverse


@tf.custom_gradient
def _sum_by_single_gram(u):
    """⟨u, S u⟩ by the whole of G, in few operations, which is fastest for small matrices."""
    gram = _off_diagonal_gram(u)
    value = tf.abs(gram) if tf.executing_eagerly() else row_sums(tf.abs(gram))
    return tf.reduce_sum(value), lambda upstream: 2.0 * upstream * tf.matmul(tf.sign(gram), u)


def _sum_by_blocks(x):
    """⟨u, S u⟩, differentiable any number of times in reverse mode.

    A loop's inputs are detached from eager tapes, which would record it; under XLA its outputs are detached too, or
    TensorFlow would differentiate it. A gradient is built in its own graph, so tensors that the next derivative needs
    are captured there. Only x is kept for the gradient, because it exists anyway; u is recomputed.
    """
    capture, with_gradient = tf.identity, is_recorded(x)
    count = execution.block_count(x, with_gradient)
    has_loop = not isinstance(count, int) or count > 2
    detach = tf.stop_gradient if has_loop and is_compiled_by_xla() else execution.detach_from_eager_tape

    def sign_product(u, v, *cached):  # S v: linear in v, constant in u
        @tf.custom_gradient
        def differentiable(u, v, *cached):  # not by closure: TensorFlow 1 graphs search closures for variables
            product = capture(*cached) if cached else detach(_product(detach(u), detach(v), count)[1])
            return product, lambda w: (tf.zeros_like(u), sign_product(capture(u), w), *(None for _ in cached))

        return differentiable(u, v, *cached)

    @tf.custom_gradient
    def differentiable(x):
        u = detach(_normalize(detach(x))[0])
        cosines, *cached = map(detach, _product(u, u, count) if with_gradient else [_value(u, count)])

        def gradient(upstream):
            # u is recomputed here, not kept from the value.
            with tf.control_dependencies(filter(execution.is_in_current_graph, cached)):
                wide_x = promote_half(capture(x))
                u, squares, inverse = _normalize(wide_x)
            by_u = 2.0 * upstream * sign_product(u, u, *cached)
            radial = row_sums(wide_x * by_u)[:, tf.newaxis] * inverse * inverse * inverse  # the part that changes norms
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
    """(⟨u, S v⟩, S v), one block of rows at a time."""
    if isinstance(count, int) and count == 2:
        return _product_of_halves(u, v)
    n, d, is_u = size(u, 0), size(u, 1), v is u
    u = _blocks(u, count)
    v, rows = u if is_u else _blocks(v, count), size(u, 1)
    if isinstance(count, int) and count == 1:
        gram = _off_diagonal_gram(u)
        product = tf.matmul(tf.sign(gram), v)
        is_wide = isinstance(d, int) and 1 < rows <= d
        terms = tf.abs(gram) if is_wide else u * product  # the smaller one
        return tf.reduce_sum(row_sums(terms)), tf.reshape(product, [n, d])
    ahead = 1 + tf.range(count // 2)

    def step(i, sums, window, product):
        after = (i + ahead) % count
        own_u, own_v, u_after = u[i], v[i], tf.gather(u, after)
        v_after = u_after if is_u else tf.gather(v, after)
        # Batched products: on a CPU they are faster than plain ones with `transpose_b`.
        tile = tf.reshape(tf.sign(tf.matmul(u_after, own_u[tf.newaxis], transpose_b=True)), [-1, rows])
        inside = tf.matmul(tf.sign(_off_diagonal_gram(own_u[tf.newaxis])[0]), own_v)
        across = tf.matmul(tile, tf.reshape(v_after, [-1, d]), transpose_a=True)
        # `gather` copies; a slice would keep the whole window in memory.
        product = product.write(i, tf.gather(window, 0) + inside + across)
        window = window[1:] + tf.reshape(tf.matmul(tile, own_v), tf.shape(v_after))
        window = tf.concat([window, tf.zeros_like(own_v)[tf.newaxis]], 0)
        return i + 1, sums + row_sums(own_u * (inside + 2.0 * across)), window, product

    start = [0, tf.zeros([rows], u.dtype), tf.zeros_like(u[: count // 2 + 1])]
    start.append(tf.TensorArray(u.dtype, count, element_shape=u.shape[1:]))
    _, sums, window, product = tf.while_loop(lambda i, *_: i < count, step, start, parallel_iterations=1)
    del start  # it holds parts of the product in eager mode
    product = product.stack()
    product = tf.concat([product[: count // 2 + 1] + window, product[count // 2 + 1 :]], 0)
    return tf.reduce_sum(sums), tf.reshape(product, [-1, d])[:n]


def _product_of_halves(u, v):
    """(⟨u, S v⟩, S v) by two halves of the rows, which share the tile of the pairs between them."""
    half = size(u, 0) // 2
    (a, b), (v_a, v_b) = (u[:half], u[half:]), (v[:half], v[half:])
    between = tf.sign(tf.matmul(a, b, transpose_b=True))
    upper = tf.matmul(tf.sign(_off_diagonal_gram(a)), v_a) + tf.matmul(between, v_b)
    lower = tf.matmul(tf.sign(_off_diagonal_gram(b)), v_b) + tf.matmul(between, v_a, transpose_a=True)
    total = tf.reduce_sum(row_sums(a * upper)) + tf.reduce_sum(row_sums(b * lower))
    return total, tf.concat([upper, lower], 0)


def _value(u, count):
    """⟨u, S u⟩. Step s pairs every block of rows with the one s places after it."""
    u = _blocks(u, count)
    sums, rows = row_sums(tf.abs(_off_diagonal_gram(u))), size(u, 1)
    if not isinstance(rows, int) or rows < 2:
        sums += tf.minimum(row_sums(tf.square(u)), 0.0)  # 0, or NaN if the row has a NaN
    if isinstance(count, int) and count == 1:
        return tf.reduce_sum(sums)
    around = tf.concat([u, u[: count // 2]], 0)

    def step(s, sums):
        # Inside the loop `tf.shape` is a constant for XLA; sizes from outside would be loop variables.
        gram = tf.matmul(u, tf.slice(around, [s, 0, 0], tf.shape(u)), transpose_b=True)
        return s + 1, sums + 2.0 * row_sums(tf.abs(gram))

    return tf.reduce_sum(tf.while_loop(lambda s, _: s <= count // 2, step, (1, sums), parallel_iterations=1)[1])


def _off_diagonal_gram(u):
    """The Gram matrix of the rows, or of the rows of each block, with zeros on the diagonal."""
    zeros = tf.zeros([size(u, axis) for axis in range(u.shape.rank - 1)], u.dtype)
    return tf.linalg.set_diag(tf.matmul(u, u, transpose_b=True), zeros)
