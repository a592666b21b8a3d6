"""Where in the user's own code something was asked for, for warnings."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_LIBRARIES = tuple(f"{Path(module).parent}/" for module in (torch.__file__, __file__))


def user_stacklevel() -> int:
    """For ``warnings.warn`` in the calling function: the first frame that is neither torch's nor this package's."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level
