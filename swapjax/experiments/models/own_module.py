"""Modules of users, imported by name or by path, and the functions in them."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from swapjax.core.text import printable, reason


def find(name: str) -> Callable[..., Any]:
    """Import the module of a network, and return the function that makes it.

    Args:
        name: ``module:function`` or ``file.py:function``.

    Raises:
        ValueError: where there is no such module or function, and for a module that
            fails while it is imported.
    """
    where, _, function = name.rpartition(":")
    what = f"model: {printable(name)}"
    if not where or not function:
        raise ValueError(f"{what}: MODULE:FUNCTION wanted, as my_file:make")
    module = _module(what, where)
    found = getattr(module, function, None)
    if found is None:
        names = [n for n in dir(module) if not n.startswith("_")]
        own = [n for n in names if _is_function_of(module, n)]
        raise ValueError(
            f"{what}: {printable(where)} has no {printable(function)}"
            + (f"; it has {printable(', '.join(own))}" if own else "")
        )
    if not callable(found):
        raise ValueError(f"{what}: is a {type(found).__name__}, a function wanted")
    return found


def _is_function_of(module: Any, name: str) -> bool:
    value = getattr(module, name)
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _module(what: str, where: str) -> Any:
    """Import a module by its name, or by the path of its file."""
    name, folder, file = where, os.getcwd(), None
    if where.endswith(".py"):
        file = os.path.realpath(where)
        folder, name = os.path.dirname(file), os.path.basename(file)[: -len(".py")]
        if not os.path.isfile(file):
            raise ValueError(f"{what}: there is no file {printable(where)}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{what}: {printable(name)!r} is no name of a module")
    # It stays, as the module may import others beside it later.
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and f"{name}.".startswith(f"{e.name}."):
            raise ValueError(
                f"{what}: there is no module {printable(name)}, neither in {folder} "
                "nor installed"
            ) from None
        raise ValueError(f"{what}: {failed(e, name, 'its import')}") from e
    except Exception as e:  # it may do anything
        raise ValueError(f"{what}: {failed(e, name, 'its import')}") from e
    there = getattr(module, "__file__", None)
    if file is not None and (there is None or os.path.realpath(there) != file):
        raise ValueError(
            f"{what}: another module {printable(name)} is imported already; give the "
            "file another name"
        )
    return module


def failed(error: Exception, module: str, doing: str) -> str:
    """Say what was raised, and where in the files of the user.

    Args:
        error: that came out of a function of a user's.
        module: the name of its module.
        doing: what was called.
    """
    text = f"{doing} raised {type(error).__name__}: {reason(error)}"
    package = module.partition(".")[0]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = frame.filename.removesuffix(".py").split(os.sep)
        if package in parts and "swapjax" not in parts:
            file = os.path.basename(frame.filename)
            return f"{text} ({printable(file)}, line {frame.lineno})"
    return text
