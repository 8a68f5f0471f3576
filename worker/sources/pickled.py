"""The pickles of CIFAR-10's Python version, read without running what a pickle may name.

`pickle.load` calls whatever the file asks for. Here a pickle can name nothing but what those of
NumPy arrays name, and of that nothing is called: the bytes of an array are all that is taken.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from image_search.values import Pixels

# What damaged pickles raise, as the documentation of Unpickler.load says, and more.
PICKLE_DAMAGE: Final = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    MemoryError,
    OverflowError,
    RecursionError,
)


def load(content: bytes) -> dict[str, Any]:
    """The dictionary that is pickled; arrays in it are `Array`. Raises one of PICKLE_DAMAGE."""
    # Python 2's strings are bytes, or names.
    loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(loaded, dict):
        raise pickle.UnpicklingError("it has no dictionary")
    return {_text(key): value for key, value in loaded.items()}


class Array:
    """What a pickle says of an array."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._type = ""
        self._content = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # numpy.ndarray.__reduce__: version, shape, type, order of Fortran, bytes
        _, self._shape, dtype, is_fortran, content = state
        if is_fortran:
            raise pickle.UnpicklingError("an array is in the order of Fortran")
        self._type = dtype.name
        self._content = content.encode("latin1") if isinstance(content, str) else bytes(content)

    def to_uint8(self) -> Pixels:
        """uint8, of the array's shape; raises UnpicklingError if it has other numbers."""
        if self._type not in {"u1", "|u1"}:
            raise pickle.UnpicklingError(f"an array holds {self._type}, not u1")
        return np.frombuffer(self._content, np.uint8).reshape(self._shape)


class _Type:
    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and fields, which bytes do not have."""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are in {encoding}")
    return text.encode("latin1")


def _reconstruct(*_: object) -> Array:
    return Array()


def _from_buffer(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> Array:
    """How protocol 5 has arrays."""
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


_KNOWN: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Type,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")
        return _KNOWN[module, name]


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def names(values: object) -> list[str]:
    """Strings of either Python; raises UnpicklingError if it is no list."""
    if not isinstance(values, list):
        raise pickle.UnpicklingError("it has no list of names")
    return [_text(value) for value in values]
