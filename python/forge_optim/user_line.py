"""Warnings at the user's line."""

import sys
import warnings

_INNER = {"torch", "forge_optim", "numpy"}


def warn(message: str, category: type[Warning]) -> None:
    """As if warned by the innermost line that belongs neither to this package nor to what it is called through."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
