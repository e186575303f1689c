"""summary: a table of the regularizers of a model."""

import contextlib
import shutil
from collections.abc import Callable
from typing import Any

from tfk_regularizers._keras.hosts import check_is_model, host_of
from tfk_regularizers._keras.regularized import Regularized, regularized, source

_HEADINGS = ("Weight or output", "Shape", "Regularizer", "From", "Penalty", "Share")


def summary(model: Any, print_fn: Callable[[str], Any] | None = None) -> None:
    """Prints a table of a model's regularizers, as `model.summary()` does of its layers.

    Each regularized weight has a row with its path, its shape, its regularizer, the package that this comes from, the
    current penalty, and the share of the sum of all penalties. A regularized output has a row without a penalty,
    because that depends on the data.

    A note below the table marks regularizers that may not do what you expect:

    - a built-in one, from before the import of this package;
    - one of Keras 3 in a layer of tf_keras, or the reverse;
    - one of a frozen weight, which Keras 3 does not penalize;
    - one of a layer that has no weights yet;
    - one that was assigned to an attribute of a built layer, which has no effect until the model is saved and loaded.

    Args:
        model: A model of tf_keras or of Keras 3.
        print_fn: A function that is called once with the whole text. Defaults to `None`, which prints as Keras does.

    Raises:
        TypeError: If `model` is not a Keras model.

    The table is drawn by `rich` if that is installed (Keras 3 requires it), and without lines otherwise.

    >>> import tensorflow as tf
    >>> hidden = tf.keras.layers.Dense(3, kernel_regularizer="l2", kernel_initializer="ones", name="hidden")
    >>> head = tf.keras.layers.Dense(1, bias_regularizer="l1", activity_regularizer="l1", name="head")
    >>> model = tf.keras.Sequential([tf.keras.Input((4,)), hidden, head], name="small")
    >>> summary(model, print_fn=print)  # doctest: +NORMALIZE_WHITESPACE
    Regularizers of "small"
    ┏━━━━━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━┓
    ┃ Weight or output ┃ Shape  ┃ Regularizer ┃ From             ┃ Penalty ┃ Share ┃
    ┡━━━━━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━┩
    │ hidden/kernel    │ (4, 3) │ L2(l2=0.01) │ tfk_regularizers │    0.12 │  100% │
    │ head/bias        │ (1,)   │ L1(l1=0.01) │ tfk_regularizers │       0 │    0% │
    │ head/activity    │        │ L1(l1=0.01) │ tfk_regularizers │         │       │
    └──────────────────┴────────┴─────────────┴──────────────────┴─────────┴───────┘
    Sum of the penalties of weights: 0.12
    """
    check_is_model(model, "`summary`")
    rows = regularized(host_of(model), model)
    penalties = [float(row.penalty) for row in rows if row.penalty is not None]
    total = sum(penalties)
    cells = [_cells(row, total) for row in rows]
    notes = [f"{row.path}: {row.note}" for row in rows if row.note]
    text = "\n".join(
        [
            f'Regularizers of "{model.name}"',
            *([_table(cells)] if cells else ["No weight or output is regularized."]),
            *notes,
            f"Sum of the penalties of weights: {total:.4g}",
        ]
    )
    (print_fn or host_of(model).print_message)(text)


def _cells(row: Regularized, total: float) -> tuple[str, ...]:
    """The cells of a row."""
    shape = "" if row.shape is None else str(tuple(row.shape))
    path = f"{row.path} *" if row.note else row.path
    if row.penalty is None:
        return path, shape, _described(row.regularizer), source(row.regularizer), "", ""
    penalty = float(row.penalty)
    share = f"{100 * penalty / total:.0f}%" if total else ""
    return path, shape, _described(row.regularizer), source(row.regularizer), f"{penalty:.4g}", share


def _described(regularizer: Any) -> str:
    """A function's name, or a regularizer's repr (from its config if it has none)."""
    if type(regularizer).__repr__ is not object.__repr__:
        return getattr(regularizer, "__name__", repr(regularizer))
    arguments: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # it may have no config
        arguments = regularizer.get_config()
    return f"{type(regularizer).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _table(rows: list[tuple[str, ...]]) -> str:
    """The table as text, drawn by rich if that is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
        lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (_HEADINGS, *rows)]
        return "\n".join("  ".join(line).rstrip() for line in lines)
    table = Table()
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in ("Penalty", "Share") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(
        width=max(120, shutil.get_terminal_size().columns), highlight=False, color_system=None, markup=False
    )
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
