"""The build backend: scikit-build-core's, behind sentences for those who lack it or would wait in silence.

Without build isolation pip does not look whether [build-system] of pyproject.toml is satisfied, and while it builds it
shows nothing: both are done here.
"""

import functools
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

# pip compares requires-python only when this file has run.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"forge: FORGE needs Python 3.11 or later, and {sys.executable} is {sys.version.split()[0]}.")

import tomllib


def refuse(found, requirement):
    python = shlex.quote(sys.executable)
    sys.exit(
        f"forge: {python} has {found}, and FORGE is built by {requirement}: run "
        f"`{python} -m pip install {shlex.quote(requirement)}` and build again."
    )


def check_requirements(pyproject):
    for requirement in tomllib.loads(pyproject.read_text())["build-system"]["requires"]:
        name = re.match(r"[\w-]+", requirement)[0]
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            refuse(f"no {name}", requirement)
        from packaging.requirements import Requirement  # scikit-build-core brings it

        if not Requirement(requirement).specifier.contains(found, prereleases=True):
            refuse(f"{name} {found}", requirement)


check_requirements(Path(__file__).parents[1] / "pyproject.toml")

from scikit_build_core import build  # noqa: E402
from scikit_build_core.build import *  # noqa: E402, F403
from scikit_build_core.errors import NotFoundError  # noqa: E402


def in_a_sentence(hook):
    @functools.wraps(hook)
    def ran(*arguments, **settings):
        try:
            return hook(*arguments, **settings)
        except NotFoundError as tool:
            sys.exit(f"forge: {tool}: run `apt install cmake ninja-build` (Debian, Ubuntu) and build again.")

    return ran


def announced(build_package):
    """Says on the terminal what pip, which keeps the output of a build to itself, does not."""

    @functools.wraps(build_package)
    def ran(*arguments, **settings):
        # Measured on two cores: 2 minutes, and 8 where nvcc is found.
        sentence = "forge: compiling takes 2 to 10 minutes on two cores; pip install -v shows how far it is."
        try:
            Path("/dev/tty").write_text(f"\n{sentence}\n")
        except OSError:
            print(sentence, file=sys.stderr, flush=True)
        return build_package(*arguments, **settings)

    return ran


prepare_metadata_for_build_wheel = in_a_sentence(build.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = in_a_sentence(build.prepare_metadata_for_build_editable)
build_wheel = in_a_sentence(announced(build.build_wheel))
build_editable = in_a_sentence(announced(build.build_editable))
