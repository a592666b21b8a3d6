"""The package's one requirement, for the build: the torch that it is compiled against.

Found before anything is compiled or fetched. A compiled module fits one minor version of torch, whichever build of it
(CPU, CUDA), so what is installed satisfies the requirement and pip leaves it alone.
"""

import re
import shlex
import sys
from importlib import metadata

OLDEST, NEWEST = (2, 11), (2, 14)


def installed_torch():
    try:
        return metadata.version("torch")  # None where an uninstallation left a folder without its METADATA
    except metadata.PackageNotFoundError:
        return None


def build_is_isolated():
    # The environments that pip and build ("…build-env-…") and uv ("builds-v0") make for one build.
    return any(re.search(r"build-env-|builds-v\d", path) for path in [sys.prefix, *sys.path])


def refuse(found):
    python = shlex.quote(sys.executable)
    (major, oldest), (_, newest) = OLDEST, NEWEST
    sys.exit(
        f"forge: {python} has {found}, and FORGE is compiled against torch {major}.{oldest} to {major}.{newest}: run "
        f"`{python} -m pip install 'torch>={major}.{oldest},<{major}.{newest + 1}'`, then "
        f"`{python} -m pip install . --no-build-isolation`."
    )


def dynamic_metadata(settings, project):
    version = installed_torch()
    if not version and build_is_isolated():
        sys.exit(
            "forge: build with `pip install . --no-build-isolation`: FORGE is compiled against the torch that is "
            "installed, which an isolated build does not see."
        )
    if not version:
        refuse("no torch")
    major, minor = (int(part) for part in re.match(r"(\d+)\.(\d+)", version).groups())
    if not OLDEST <= (major, minor) <= NEWEST:
        refuse(f"torch {version}")
    return {"dependencies": [f"torch=={major}.{minor}.*"]}


def dynamic_wheel(settings):
    return {"dependencies": True}
