"""What a type checker is told that arguments and factors are."""

from typing import Any, Literal, Protocol, SupportsFloat, TypeAlias

Mode: TypeAlias = Literal["rows", "columns"]


class _Scalar(Protocol):
    """A `tf.Variable`, as stubs of TensorFlow have it; by its own name it is anything where there are none."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


Factor: TypeAlias = SupportsFloat | _Scalar


class FactorAttribute:
    """An attribute that is set to a `Factor`, and read as what the reader knows that it is."""

    def __get__(self, instance: Any, owner: Any = None) -> Any: ...

    def __set__(self, instance: Any, value: Factor) -> None: ...
