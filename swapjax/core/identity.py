"""Texts that tell settings apart, the same in every process, terminal and release.

A run in a file goes on only with the settings it began with. Addresses, colours, hash
orders and paths of scripts differ from process to process and are no settings.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import numbers
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from swapjax.core import keys, trees

# What they define is told by its name: versions are compared as such.
_LIBRARIES = {"swapjax", "jax", "jaxlib", "optax", "numpy", "ott", "builtins"}
_ADDRESS = re.compile(r"(?: at)? 0x[0-9a-fA-F]+|\x1b\[[0-9;]*m")
_CODE = re.compile(r" \(code [0-9a-f]+\)")
_LONG = 60  # letters of a text that people may read
_DEEP = 60


def describe(value: Any) -> str:
    """Tell a setting apart from others by its structure and its values.

    Args:
        value: numbers, text, arrays, containers, dataclasses, functions and whatever
            else functions close over. Functions of users are told by names, constants
            and what they close over, and by their code where there is any, which
            `without_code` takes out.

    Returns:
        A short text.
    """
    text = _Teller(code=False).tell(value)
    whole = _Teller(code=True).tell(value)
    return text if text == whole else with_code(text, whole)


def with_code(text: str, code: str) -> str:
    """Add to a text what holds only for one version of Python and JAX."""
    return f"{text} (code {short_hash(code)})"


def without_code(text: str) -> str:
    """Take out of a text what other versions of Python and JAX would tell otherwise."""
    return _CODE.sub("", text)


def without_addresses(text: str) -> str:
    """Take out of a text what differs between processes and terminals."""
    return _ADDRESS.sub("", text)


def short_hash(text: str) -> str:
    """Return eight digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]


def digest(tree: Any) -> str:
    """Tell trees of arrays apart, by paths, dtypes, shapes and every bit."""
    result = hashlib.sha256()
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
        array = np.ascontiguousarray(keys.bits(leaf))
        result.update(f"{path} {array.dtype} {array.shape}".encode())
        result.update(
            array.reshape(-1).view(np.uint8).data
        )  # no copy: files may be large
    return result.hexdigest()[:16]


class _Teller:
    """Writes values out; one for each description, since it remembers what it met.

    Args:
        code: whether to tell functions of users by their code, too.
    """

    def __init__(self, code: bool) -> None:
        self._code = code
        self._met: dict[int, tuple[Any, str]] = {}
        self._depth = 0

    def tell(self, value: Any) -> str:
        """Write a value out, by a hash where that is long."""
        if id(value) in self._met:
            return self._met[id(value)][1]
        # What holds itself ends here. The value is kept lest its id be given anew.
        self._met[id(value)] = value, f"the same {type(value).__name__}"
        self._depth += 1
        text = self._whole(value) if self._depth < _DEEP else type(value).__name__
        self._depth -= 1
        if len(text) > _LONG:
            text = f"{type(value).__name__} {short_hash(text)}"
        self._met[id(value)] = value, text
        return text

    def _whole(self, value: Any) -> str:
        for kinds, write in self._writers():
            if isinstance(value, kinds):
                return write(value)
        if dataclasses.is_dataclass(value):
            there = (
                f.name for f in dataclasses.fields(value) if hasattr(value, f.name)
            )
            return self._object(value, {name: getattr(value, name) for name in there})
        return self._object(value, _attributes(value))

    def _writers(self) -> tuple[tuple[Any, Any], ...]:
        """List which kinds are written how; the first that fits does."""
        return (
            ((types.NoneType, bool, str, bytes, range, slice, re.Pattern), repr),
            (np.bool_, lambda v: repr(bool(v))),
            (enum.Enum, lambda v: f"{type(v).__name__}.{v.name}"),
            (numbers.Integral, lambda v: str(int(v))),
            (numbers.Rational, str),
            (numbers.Real, lambda v: repr(float(v))),
            (numbers.Complex, lambda v: repr(complex(v))),
            (np.dtype, lambda v: v.name),
            (np.generic, lambda v: f"{v.dtype} {v.tobytes().hex()}"),
            (jax.core.Tracer, lambda v: type(v).__name__),
            ((np.ndarray, jax.Array), self._array),
            (os.PathLike, lambda v: repr(os.fspath(v))),
            (type, _name_class),
            (functools.partial, self._partial),
            (types.MethodType, lambda v: self._call(v.__func__, v.__self__)),
            (types.FunctionType, self._function),
            (types.CodeType, self._program),
            ((types.BuiltinFunctionType, np.ufunc), _name_function),
            (types.ModuleType, lambda v: v.__name__),
            (jax.tree_util.PyTreeDef, lambda v: f"{v.num_leaves} leaves"),
            (Mapping, self._mapping),
            (Set, lambda v: f"{{{', '.join(sorted(map(self.tell, v)))}}}"),
            (Sequence, self._sequence),
        )

    def _array(self, value: Any) -> str:
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return f"array{value.shape}{self.tell(value.tolist())}"
        kind = f" of {jax.random.key_impl(value)}" if keys.is_key(value) else ""
        return f"array {digest(value)}{kind}"

    def _call(self, function: Any, *values: Any) -> str:
        return f"{self.tell(function)}({', '.join(map(self.tell, values))})"

    def _partial(self, value: functools.partial) -> str:
        return self._call(value.func, value.args, value.keywords)

    def _mapping(self, value: Mapping) -> str:
        pairs = sorted(f"{self.tell(k)}: {self.tell(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"

    def _sequence(self, value: Sequence) -> str:
        return f"{type(value).__name__}({', '.join(map(self.tell, value))})"

    def _object(self, value: Any, attributes: Mapping[str, Any]) -> str:
        """Tell an object by its class and attributes, a wrapper by what it wraps."""
        name = type(value).__name__
        if not attributes and callable(value):
            name = _name_function(value)
        inner = [f"{k}={self.tell(v)}" for k, v in sorted(attributes.items())]
        return f"{name}({', '.join(inner)})"

    def _function(self, value: types.FunctionType) -> str:
        """Tell a function by its name, its code if a user's, and what it depends on."""
        parts, name = [_name_function(value)], value.__module__ or ""
        inside = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = {n: _content(cell) for n, cell in inside}
        if name.partition(".")[0] not in _LIBRARIES:
            parts = [value.__name__, self._program(value.__code__)]
            named = {n for code in _codes(value.__code__) for n in code.co_names}
            held |= {
                n: v
                for n, v in value.__globals__.items()
                if n in named and not n.startswith("__")
            }
            held = {n: v for n, v in held.items() if _is_fixed(v)}
            held |= {"": (value.__defaults__, value.__kwdefaults__)}
        parts += [f"{n}={self.tell(v)}" for n, v in sorted(held.items())]
        return f"function({', '.join(parts)})"

    def _program(self, code: types.CodeType) -> str:
        """Tell code by the names and constants in it, or exactly."""
        if _is_ours(code):
            return f"swapjax:{code.co_qualname}"
        codes = list(_codes(code))
        if not self._code:
            floats = {c for part in codes for c in part.co_consts if type(c) is float}
            names = {name for part in codes for name in part.co_names}
            return f"code({self.tell(names)}, {self.tell(floats)})"
        parts = [part.co_code.hex() for part in codes]
        parts += [self.tell(part.co_names) for part in codes]
        parts += [self.tell(_constants(part)) for part in codes]
        return f"code({short_hash(' '.join(parts))})"


def _attributes(value: Any) -> dict[str, Any]:
    """Find what an object holds; nothing for those of extensions."""
    wrapped = getattr(value, "__wrapped__", None)
    held = dict(getattr(value, "__dict__", None) or {})
    if wrapped is not None:  # by jax.jit, jax.custom_vjp, functools.cache
        inner = {k: held[k] for k in ("fwd", "bwd", "jvp") if k in held}
        return {**inner, "of": wrapped}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with_value = inspect.getattr_static(value, name, None) is not None
            if with_value and hasattr(value, name):
                held[name] = getattr(value, name)
    held.pop("__weakref__", None)
    held.pop("__dict__", None)
    return held


def _name_class(value: type) -> str:
    """Name a class; what stands for a dtype by the dtype."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):
        return dtype.name
    return value.__name__ if issubclass(value, np.generic) else value.__qualname__


def _name_function(value: Any) -> str:
    """Name a function of a library: files in it may move, the function stays."""
    name = getattr(value, "__qualname__", getattr(value, "__name__", None))
    module = (getattr(value, "__module__", None) or "").partition(".")[0]
    return f"{module}:{name}" if name else type(value).__name__


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _is_fixed(value: Any) -> bool:
    """Tell whether what a user's function holds is a setting, and no place to count in.

    Lists, dicts, sets and objects that are no dataclasses may change as a run goes on.
    """
    fixed = (
        *(types.NoneType, bool, numbers.Number, str, bytes, tuple, frozenset),
        *(np.ndarray, np.generic, np.dtype, jax.Array, enum.Enum, type),
        *(functools.partial, types.FunctionType, types.MappingProxyType),
    )
    return (
        isinstance(value, fixed)
        or dataclasses.is_dataclass(value)
        or hasattr(value, "__wrapped__")
    )


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    """Yield code and all code inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _constants(code: types.CodeType) -> list[Any]:
    return [c for c in code.co_consts if not isinstance(c, types.CodeType)]


def _is_ours(code: types.CodeType) -> bool:
    house = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return code.co_filename.startswith(house + os.sep)
