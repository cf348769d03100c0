"""Prune neural networks in JAX, before, during and after training.

The public names are those of `swapjax.face`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    # The tables beside the face, whose lists mypy does not follow through it.
    from swapjax.face import *
    from swapjax.face import __all__ as __all__
    from swapjax.pruning.methods import *
    from swapjax.training.rules import *
else:
    # Imported with the first name that is asked for, so that the command line tells
    # what it can do before JAX is there.
    def __getattr__(name: str) -> Any:
        """Take a public name, or a room of the house, from where it is defined."""
        import importlib

        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module 'swapjax' has no attribute {name!r}")
        face = importlib.import_module("swapjax.face")
        if name == "__all__" or name in face.__all__:
            return getattr(face, name)
        if name in globals():  # a room that the face has imported
            return globals()[name]
        raise AttributeError(f"module 'swapjax' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """List the public names."""
        import importlib

        return sorted([*importlib.import_module("swapjax.face").__all__, *globals()])
