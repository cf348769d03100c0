"""Compiled programs that live as long as the functions they are made from.

``jax.jit`` keeps its static arguments, and what it compiled for them, until thousands
of others came after. A loss closes over data and teachers, which would stay in memory
with it. Here a program is found again by the functions it was made from, and is gone
when one of them is.
"""

import itertools
import threading
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax

# Programs of one body; each takes megabytes. Those alike differ in values alone, as in
# a sweep over a setting, which rarely comes back to one.
_LIMIT = 32
_ALIKE = 4


class Reference:
    """A function, or a value, as a key that does not keep a function alive.

    References of the same function are equal, and of equal values. What is compared by
    identity, as functions are, is not kept alive; what is compared by value is.

    Args:
        target: what to refer to.
        gone: called without arguments when it is gone.
    """

    __slots__ = ("_bound", "_find", "_hash", "_lasts")

    def __init__(self, target: Any, gone: Callable[[], Any] | None = None) -> None:
        # A bound method is made anew at each access: its object lives on.
        is_bound = isinstance(target, types.MethodType)
        self._bound = target.__func__ if is_bound else None
        owner = target.__self__ if is_bound else target
        if not is_bound and _has_value(owner):
            self._hash, self._find = hash(owner), lambda: owner
            self._lasts = True
            return
        self._hash, self._lasts = hash((id(owner), self._bound)), owner is None
        try:
            forget = None if gone is None else lambda _: gone()
            self._find = weakref.ref(owner, forget)
        except TypeError:
            self._find = lambda: owner

    def __call__(self) -> Any:
        """Return the target; None when it is gone."""
        owner = self._find()
        if self._bound is None or owner is None:
            return owner
        return types.MethodType(self._bound, owner)

    @property
    def lasts(self) -> bool:
        """Whether the target is compared by value, and is never gone."""
        return self._lasts

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        # Not isinstance: nothing global is left when the interpreter ends.
        if type(other) is not type(self) or self._hash != other._hash:
            return False
        mine, others = self._find(), other._find()
        if mine is None or others is None:  # gone, or None itself
            return mine is others and self._lasts and other._lasts
        if self._bound is not other._bound:
            return False
        return mine is others or (self._lasts and other._lasts and bool(mine == others))


def _has_value(target: Any) -> bool:
    """Whether something is compared by value, and can be a key as such."""
    equal: Any = type(target).__eq__
    if equal is object.__eq__:
        return False
    try:
        hash(target)
    except TypeError:
        return False
    return True


class Compiled:
    """A function of static things and of arrays, compiled once for each set of owners.

    The programs used last are kept: 4 of those whose first owner and functions are the
    same, 32 in all.

    Args:
        body: a pure function ``body(*static, *arrays)``.
        donate: which of the arrays it may write into, by number.
    """

    def __init__(self, body: Callable, *, donate: tuple[int, ...] = ()) -> None:
        self._body, self._donate = body, donate
        self._programs: dict[tuple[Reference, ...], _Program] = {}
        self._calls = itertools.count()

    def __call__(self, static: tuple, *arrays: Any, owners: tuple = ()) -> Any:
        """Call the function.

        Args:
            static: what it takes before the arrays.
            arrays: pytrees of arrays.
            owners: what tells programs apart: functions and values with a hash. By
                default those that are static.
        """
        owners = owners or static
        program = self._programs.get(tuple(map(Reference, owners)))
        if program is None:
            program = self._make(owners)
        program.used = next(self._calls)
        return program(static, arrays)

    def _make(self, owners: tuple) -> "_Program":
        """Make a program that is gone with its owners, or when many others are used."""
        key: tuple[Reference, ...] = ()

        def forget() -> None:
            self._programs.pop(key, None)

        key = tuple(Reference(owner, forget) for owner in owners)
        kept = sorted(self._programs.items(), key=lambda item: item[1].used)
        alike = [old for old, _ in kept if _family(old) == _family(key)]
        for old in alike[: max(0, len(alike) - _ALIKE + 1)]:
            self._programs.pop(old, None)
        for old, _ in kept:
            if len(self._programs) < _LIMIT:
                break
            self._programs.pop(old, None)
        self._programs[key] = program = _Program(self._body, self._donate)
        return program


def _family(key: tuple[Reference, ...]) -> tuple[Reference, ...]:
    """Tell what programs have in common that differ in values alone."""
    return (*key[:1], *(owner for owner in key[1:] if not owner.lasts))


class _Program:
    """A function compiled for some owners; it sees them while it is called only."""

    def __init__(self, body: Callable, donate: tuple[int, ...]) -> None:
        seen = threading.local()

        def call(*arrays: Any) -> Any:
            return body(*seen.static, *arrays)

        call.__name__ = call.__qualname__ = body.__name__.strip("_")
        self._seen, self._run, self.used = seen, jax.jit(call, donate_argnums=donate), 0

    def __call__(self, static: tuple[Hashable, ...], arrays: tuple) -> Any:
        before = getattr(self._seen, "static", None)
        self._seen.static = static
        try:
            return self._run(*arrays)
        finally:
            self._seen.static = before
