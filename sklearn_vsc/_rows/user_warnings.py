"""Warnings that point at the line of the user's code that called the library."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings

# Libraries that call this package, directly or as a callback.
_LIBRARIES = ("sklearn_vsc", "sklearn", "skorch", "torch", "joblib", "dask", "distributed")
_STANDARD_WRAPPERS = frozenset({contextlib.__file__, functools.__file__})


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points at the innermost line outside this package and its libraries.

    ``warnings.warn`` counts stack frames, but how many lie between the user's call and a warning
    depends on decorators, pipelines and searches; Python 3.11 cannot skip files by their path.
    """
    inside = tuple(
        os.path.dirname(os.path.abspath(library.__file__)) + os.sep
        for name in _LIBRARIES
        if (library := sys.modules.get(name)) is not None and library.__file__
    )
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if not path.startswith(inside) and path not in _STANDARD_WRAPPERS:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
