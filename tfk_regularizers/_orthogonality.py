"""The mathematics of orthogonality: the mean absolute cosine between the rows of a matrix, in bounded memory.

With u the n x d matrix of normalized rows and G = u uᵀ its Gram matrix, the penalty is P = Σ_{i≠j} |Gᵢⱼ| / (n (n - 1)).

*Gradient.* Let S = sign(G) with a zero diagonal. Then Σ_{i≠j} |Gᵢⱼ| = Σᵢⱼ Sᵢⱼ ⟨uᵢ, uⱼ⟩ = ⟨u, S u⟩. S is constant
almost everywhere, so this is a quadratic form: its gradient is 2 S u, its Hessian is v ↦ 2 S v, and nothing comes
after that. The upstream gradient is a scalar and multiplies at the end, so S u can be gathered while G passes by.

*Work.* Count in F, the multiply-adds of the whole Gram matrix. Keeping G and letting TensorFlow differentiate takes 1 F
for the value and 3 F with the gradient. G and S are symmetric, so half of the pairs are enough: 0.5 F for G, and 0.5 F
each for what a pair (i, j) adds to row i and to row j of S u. That is 0.5 F and 1.5 F.

*Ring.* Cut u into an odd number k of blocks of b rows (padded with zero rows, which add nothing). Step 0 multiplies
each block with itself. Step s = 1 .. (k - 1) / 2 multiplies each block i with block i + s, counted cyclically. So each
pair of blocks meets exactly once, every step is one batched product of the same static shape, and a `tf.while_loop`
holds one step at a time: k b² ≈ n b entries of G, of |G| and of S instead of n² each.

References: Rabe and Staats, "Self-attention Does Not Need O(n²) Memory", 2021, and Dao et al., "FlashAttention", 2022,
for gathering what is needed of an n x n matrix of products tile by tile instead of storing it.
"""

import tensorflow as tf

from tfk_regularizers import _execution, _penalties

_EPSILON = 1e-12  # as in tf.math.l2_normalize

# Up to this many rows one Gram matrix (4 MB in float32) is as fast as tiles, and has less to set up.
_DIRECT_UP_TO = 1024

# Blocks of 512 rows were fastest on two CPU cores at 4096 rows, of 256 at 8192; smaller ones repeat more passes over u,
# larger ones waste more of step 0 and hold more. In between, a step has 8 MB of entries in float32.
_BLOCK_ROWS = (256, 512)
_STEP_ENTRIES = 2**21


def mean_absolute_cosine(x, block_rows=None):
    """Mean over the unordered pairs i < j of |⟨x̂ᵢ, x̂ⱼ⟩|, x̂ the L2-normalized rows of the matrix x; 0 without a pair.

    `block_rows` forces the ring with such blocks; only tests pass it.
    """
    x = _penalties.wide(x)
    u = x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(x), axis=1, keepdims=True), _EPSILON))
    if block_rows is not None or _pays_to_tile(x):
        cosines = _tiled_in_function(u, block_rows)
    else:
        cosines = _direct(u) if isinstance(u, tf.Tensor) else _direct_value(_gram(u))
    return cosines / tf.cast(_count_pairs(_size(x, 0)), x.dtype)


def sampled(x, size, axis):
    """`size` slices of x along an axis, drawn uniformly without replacement; all of them if there are no more.

    The largest of n random numbers: compiled by XLA, sorting them all would take ten times as long.
    """
    n = _size(x, axis)
    if isinstance(n, int) and n <= size:
        return tf.convert_to_tensor(x)
    _, drawn = tf.math.top_k(
        tf.random.uniform([n]), min(size, n) if isinstance(n, int) else tf.minimum(min(size, n.dtype.max), n)
    )
    return tf.gather(x, drawn, axis=axis)


def _pays_to_tile(x):
    """Whether x has, or may have, many rows, and is where a function can be nested."""
    rows = tf.compat.dimension_value(x.shape[0])
    large = rows is None or rows > _DIRECT_UP_TO
    return large and isinstance(x, tf.Tensor) and _execution.may_nest_functions()


def _count_pairs(n):
    """n (n - 1), at least 1; in a wide integer, for int32 overflows from n = 46342."""
    if isinstance(n, int):
        return max(n * (n - 1), 1)
    n = tf.cast(n, tf.int64)
    return tf.maximum(n * (n - 1), 1)


def _gram(u):
    """Products of all pairs of rows, zero on the diagonal (or NaN); u may be a batch of blocks."""
    if _execution.may_nest_functions():
        # Not from the matrix's own diagonal: a TPU compiler makes copies of the matrix to take that.
        zeros = tf.minimum(tf.reduce_sum(tf.square(u), axis=-1), 0.0)
        return tf.linalg.set_diag(tf.matmul(u, u, transpose_b=True), zeros)
    # DTensor cannot set a diagonal, and `transpose_b=True` fails there on rows that are sharded.
    gram = tf.matmul(u, tf.linalg.matrix_transpose(u))
    return gram - gram * tf.eye(_size(gram, -1), dtype=gram.dtype)


def _absolute_row_sums(gram):
    """Σⱼ |Gᵢⱼ| as a vector, by a product with ones: under XLA on a CPU it is faster than a plain sum, and right."""
    return tf.linalg.matvec(tf.abs(gram), tf.ones([_size(gram, -1)], gram.dtype))


def _direct_value(gram):
    # A plain sum in eager, where XLA is not around, and where functions cannot nest: DTensor does not follow a product.
    plain = tf.executing_eagerly() or not _execution.may_nest_functions()
    return tf.reduce_sum(tf.abs(gram)) if plain else tf.reduce_sum(_absolute_row_sums(gram))


@tf.custom_gradient
def _direct(u):
    """⟨u, S u⟩ by one Gram matrix."""
    gram = _gram(u)
    return _direct_value(gram), lambda dy: 2.0 * dy * tf.matmul(tf.sign(gram), u)


def _tiled(u, block_rows):
    """⟨u, S u⟩ by the ring, right to any order of differentiation in reverse mode.

    What goes into the loop is cut from the tape, or an eager tape would record the loop's inside; what comes out is cut
    too, or XLA would try to differentiate the loop. A gradient is built in a graph of its own: what it hands on to the
    next order has to be made a tensor of that graph, here.
    """
    cut, here = tf.stop_gradient, tf.identity

    @tf.custom_gradient
    def hessian_product(u, v):  # 2 S v: linear in v, constant in u
        product = cut(2.0 * _ring(cut(u), cut(v), block_rows)[1])
        return product, lambda w: (tf.zeros_like(u), hessian_product(here(u), w))

    @tf.custom_gradient
    def with_hessian(u, gradient):  # the gradient at hand, with its derivative by u
        return here(gradient), lambda w: (hessian_product(here(u), w), tf.zeros_like(gradient))

    @tf.custom_gradient
    def value(u):
        cosines, product = _ring(cut(u), cut(u), block_rows)
        gradient = cut(2.0 * product)
        return cut(cosines), lambda dy: dy * with_hessian(here(u), here(gradient))

    return value(u)


# A function of its own: in eager it drops the gradient where only the value is asked for, and forward mode, which looks
# past custom gradients op by op, takes a function's gradient as a whole.
_tiled_in_function = tf.function(_tiled, autograph=False)
_execution.expect_many_shapes(_tiled_in_function)


def _ring(u, v, block_rows):
    """(⟨u, S u⟩, S v) with S = sign(u uᵀ) without its diagonal, block by block."""
    n, d = _size(u, 0), _size(u, 1)
    blocks, b = _block_counts(n, block_rows)
    u, v = (tf.reshape(tf.pad(x, [[0, blocks * b - n], [0, 0]]), [blocks, b, d]) for x in (u, v))
    twice_u, twice_v = tf.concat([u, u], 0), tf.concat([v, v], 0)

    def step(s, sums, product):
        size = tf.shape(u)  # [blocks, b, d]; as numbers that the loop carries, XLA may not take them for constants
        gram = tf.matmul(u, tf.slice(twice_u, [s, 0, 0], size), transpose_b=True)
        sign = tf.sign(gram)
        product += tf.matmul(sign, tf.slice(twice_v, [s, 0, 0], size))
        product += tf.roll(tf.matmul(sign, v, transpose_a=True), s, axis=0)
        return s + 1, sums + 2.0 * _absolute_row_sums(gram), product

    gram = _gram(u)
    start = (1, _absolute_row_sums(gram), tf.matmul(tf.sign(gram), v))
    _, sums, product = tf.while_loop(lambda s, *_: s <= (blocks - 1) // 2, step, start, parallel_iterations=1)
    return tf.reduce_sum(sums), tf.reshape(product, [blocks * b, d])[:n]


def _block_counts(n, block_rows):
    """An odd number of blocks that covers n rows with as little padding as possible, and the rows of each."""
    if isinstance(n, int):
        rows = block_rows or min(max(_STEP_ENTRIES // max(n, 1), _BLOCK_ROWS[0]), _BLOCK_ROWS[1])
        blocks = max(n // rows, 1) // 2 * 2 + 1
        return blocks, -(-n // blocks)
    rows = block_rows or tf.clip_by_value(_STEP_ENTRIES // tf.maximum(n, 1), *_BLOCK_ROWS)
    blocks = tf.maximum(n // rows, 1) // 2 * 2 + 1
    return blocks, -(-n // blocks)


def _size(x, axis):
    """The size of an axis: a Python int where it is static."""
    static = tf.compat.dimension_value(x.shape[axis])
    return static if static is not None else tf.shape(x)[axis]
