"""The package's one requirement, for the build: the torch that it is compiled against.

Found before anything is compiled or fetched. A compiled module fits one minor version of torch, whichever build of it
(CPU, CUDA), so what is installed satisfies the requirement and pip leaves it alone.
"""

import sys
from importlib import metadata

OLDEST, NEWEST = (2, 11), (2, 13)


def dynamic_metadata(settings, project):
    supported = f"torch {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        sys.exit(
            f"forge: {sys.executable} has no torch to build against: install {supported} in it and build "
            "with --no-build-isolation."
        )
    major, minor = (int(part) for part in version.split(".")[:2])
    if not OLDEST <= (major, minor) <= NEWEST:
        sys.exit(f"forge: {sys.executable} has torch {version}, and FORGE is built against {supported}.")
    return {"dependencies": [f"torch=={major}.{minor}.*"]}


def dynamic_wheel(settings):
    return {"dependencies": True}
