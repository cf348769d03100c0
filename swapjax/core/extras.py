"""Optional dependencies: which are missing, and the line that installs them."""

import importlib.util

_LABORATORY = ("flax", "sklearn", "PIL", "matplotlib", "rich")
# What each extra of pyproject.toml that users install brings, as it is imported.
PACKAGES = {
    "experiments": _LABORATORY,
    "cli": (*_LABORATORY, "tyro"),
    "data": (*_LABORATORY, "tensorflow_datasets", "importlib_resources"),
}
# Packages that are installed under other names than they are imported by.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "tensorflow_datasets": "tensorflow-datasets",
    "importlib_resources": "importlib-resources",
}


def require(extra: str, what: str) -> None:
    """Raise where a package of an extra is missing; import none.

    Args:
        extra: a key of `PACKAGES`.
        what: the part of swapjax that needs it, the start of the sentence.

    Raises:
        ImportError: naming the packages, and the line that installs them.
    """
    missing = [name for name in PACKAGES[extra] if not _is_there(name)]
    if missing:
        names = ", ".join(DISTRIBUTIONS.get(name, name) for name in missing)
        raise ImportError(f'{what} needs {names}: pip install "swapjax[{extra}]"')


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a finder that refuses; a module without a spec
        return False
