"""What a build says where something that it needs is absent or unsuitable, and while it compiles. Compiles nothing."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import packaging
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# A stand-in for scikit-build-core, whose builds print what they are asked for.
HOOKS = """
from ..errors import CMakeNotFoundError

def build_wheel(folder, config_settings=None):
    print("built in", folder)
    return config_settings

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    raise CMakeNotFoundError("Could not find CMake")

build_editable, prepare_metadata_for_build_editable = build_wheel, prepare_metadata_for_build_wheel
"""
ERRORS = "class NotFoundError(Exception): pass\nclass CMakeNotFoundError(NotFoundError): pass\n"


def install(folder, name, version):
    """Makes `name` an installed package, as far as its metadata tell."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def install_backend(folder, version="1.1.2"):
    install(folder, "scikit_build_core", version)
    (folder / "packaging").symlink_to(Path(packaging.__file__).parent)
    (folder / "scikit_build_core/build").mkdir(parents=True)
    for file, source in {"__init__.py": "", "errors.py": ERRORS, "build/__init__.py": HOOKS}.items():
        (folder / "scikit_build_core" / file).write_text(source)


def run(folder, script, through=(), **settings):
    """Runs `script` where `folder` holds all that is installed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'python'}:{folder}"}
    command = [*through, sys.executable, "-S", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, **settings)


def refusal(folder, script):
    ran = run(folder, script)
    assert ran.returncode == 1, ran.stderr
    assert ran.stderr.startswith("forge: ") and ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr


def remedies(message):
    return [shlex.split(command) for command in re.findall("`(.+?)`", message)]


# ---- torch --------------------------------------------------------------------------------------------------------

BUILD = "import build_backend; print('returned', build_backend.build_wheel('here', config_settings=7))"
ASK_FOR_TORCH = "import torch_requirement; print(torch_requirement.dynamic_metadata({}, {}))"


@pytest.mark.parametrize("version", ["2.10.1", "1.13.1", "2.15.0", "2.15.0a0+git12ab", "3.0.0+cpu"])
def test_a_torch_it_cannot_be_built_with_is_named_with_the_command_for_one_it_can(tmp_path, version):
    install(tmp_path, "torch", version)
    message = refusal(tmp_path, ASK_FOR_TORCH)
    assert f"has torch {version}, and FORGE is compiled against torch 2.11 to 2.14" in message
    first, then = remedies(message)
    assert first[:-1] == [sys.executable, "-m", "pip", "install"]
    assert then == [sys.executable, "-m", "pip", "install", ".", "--no-build-isolation"]
    supported = Requirement(first[-1])
    assert supported.name == "torch"
    assert all(v in supported.specifier for v in ["2.11.0", "2.13.0+cpu", "2.14.1"])
    assert not any(v in supported.specifier for v in ["2.10.1", "2.15.0", "3.0.0"])


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.14.1", "2.14.1+cu130", "2.14.0a0+git12ab"])
def test_each_build_of_a_supported_torch_satisfies_the_package(tmp_path, version):
    install(tmp_path, "torch", version)
    ran = run(tmp_path, ASK_FOR_TORCH)
    minor = ".".join(version.split(".")[:2])
    assert ran.stdout.strip() == f"{{'dependencies': ['torch=={minor}.*']}}", ran.stderr


def test_the_torch_of_the_tests_is_supported():
    torch = next(line for line in (ROOT / "requirements.txt").read_text().split() if line.startswith("torch=="))
    script = "import torch_requirement as t; print(t.OLDEST, t.NEWEST)"
    oldest, newest = re.findall(r"\((\d+), (\d+)\)", run("", script).stdout)
    assert tuple(map(int, oldest)) <= tuple(map(int, re.findall(r"\d+", torch)[:2])) <= tuple(map(int, newest))


@pytest.mark.parametrize("page", ["README.md", "docs/pytorch.md"])
def test_the_pages_install_what_the_build_asks_for(tmp_path, page):
    requirements = [remedies(refusal(tmp_path, script))[0][-1] for script in (ASK_FOR_TORCH, BUILD)]
    (line,) = re.findall(r"^    pip install (?!\.)(.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert shlex.split(line) == requirements


@pytest.mark.parametrize("left_over", [False, True])
def test_without_torch_it_says_how_to_install_one(tmp_path, left_over):
    if left_over:
        (tmp_path / "torch-2.13.0.dist-info").mkdir()  # what an interrupted uninstallation leaves
    message = refusal(tmp_path, ASK_FOR_TORCH)
    assert "has no torch, and FORGE is compiled against torch 2.11 to 2.14" in message
    assert remedies(message)[0][1:4] == ["-m", "pip", "install"]


@pytest.mark.parametrize("name", ["python of mine", "env's", "$HOME"])
def test_the_commands_hold_for_any_path_of_python(tmp_path, name):
    script = f"import sys; sys.executable = {f'/opt/{name}/python'!r}; {ASK_FOR_TORCH}"
    assert remedies(refusal(tmp_path, script))[0][0] == f"/opt/{name}/python"


@pytest.mark.parametrize(
    "environment",
    [
        "sys.path.append('/tmp/pip-build-env-0k1x/overlay/lib/python3.12/site-packages')",
        "sys.prefix = '/tmp/build-env-6_hq'",
        "sys.prefix = '/home/user/.cache/uv/builds-v0/.tmpq2Zb'",
    ],
    ids=["pip", "build", "uv"],
)
def test_an_isolated_build_without_torch_says_first_how_to_leave_isolation(tmp_path, environment):
    message = refusal(tmp_path, f"import sys; {environment}; {ASK_FOR_TORCH}")
    assert message.startswith("forge: build with `pip install . --no-build-isolation`")


def test_an_isolated_build_that_sees_a_torch_uses_it(tmp_path):
    install(tmp_path, "torch", "2.12.0")
    assert "torch==2.12.*" in run(tmp_path, f"import sys; sys.prefix = '/tmp/build-env-6_hq'; {ASK_FOR_TORCH}").stdout


# ---- What builds it -----------------------------------------------------------------------------------------------



ASK_FOR_BACKEND = [sys.executable, "-m", "pip", "install", *PYPROJECT["build-system"]["requires"]]


def test_without_scikit_build_core_it_says_how_to_install_it(tmp_path):
    message = refusal(tmp_path, BUILD)
    assert "has no scikit-build-core, and FORGE is built by" in message
    assert remedies(message) == [ASK_FOR_BACKEND]


@pytest.mark.parametrize("version", ["0.11.6", "1.0.3", "1.1.0a1"])
def test_too_old_a_scikit_build_core_is_named_with_the_command_for_a_newer_one(tmp_path, version):
    install_backend(tmp_path, version)
    message = refusal(tmp_path, BUILD)
    assert f"has scikit-build-core {version}, and FORGE is built by" in message
    assert remedies(message) == [ASK_FOR_BACKEND]


@pytest.mark.parametrize("version", ["1.1", "1.1.2", "2.0.0.dev3"])
def test_with_a_newer_one_it_builds(tmp_path, version):
    install_backend(tmp_path, version)
    assert run(tmp_path, BUILD).stdout == "built in here\nreturned 7\n"


def test_pip_asks_this_backend(tmp_path):
    install(tmp_path, "scikit_build_core", "0.11.6")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-build-isolation", "--no-deps", "--no-index"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": ""}  # no CMake, so that it never gets to compile
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "has scikit-build-core 0.11.6, and FORGE is built by" in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("hook", ["prepare_metadata_for_build_wheel", "prepare_metadata_for_build_editable"])
def test_without_cmake_it_says_how_to_install_it(tmp_path, hook):
    install_backend(tmp_path)
    message = refusal(tmp_path, f"import build_backend; build_backend.{hook}('here')")
    assert "Could not find CMake: run `apt install cmake" in message


def test_an_older_python_is_refused_by_its_version(tmp_path):
    major, minor = map(int, re.fullmatch(r">=(\d+)\.(\d+)", PYPROJECT["project"]["requires-python"]).groups())
    script = f"import sys; sys.version_info = ({major}, {minor - 1}, 9); sys.version = '{major}.{minor - 1}.9 (main)'"
    message = refusal(tmp_path, f"{script}; import build_backend")
    assert f"needs Python {major}.{minor} or later" in message and f"is {major}.{minor - 1}.9." in message


# ---- While it compiles --------------------------------------------------------------------------------------------

WAIT = "forge: compiling takes 2 to 10 minutes"


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_terminal_is_told_that_it_takes_minutes_though_pip_keeps_the_output(tmp_path, hook):
    install_backend(tmp_path)
    spawn = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]
    captured = ["sh", "-c", f'exec "$0" "$@" >{shlex.quote(str(tmp_path / "captured"))} 2>&1']
    script = f"import build_backend; build_backend.{hook}('here')"
    shown = run(tmp_path, script, through=[*spawn, *captured], stdin=subprocess.DEVNULL).stdout
    assert WAIT in shown
    assert (tmp_path / "captured").read_text() == "built in here\n"


def test_without_a_terminal_the_log_is_told(tmp_path):
    install_backend(tmp_path)
    ran = run(tmp_path, BUILD, start_new_session=True)
    assert WAIT in ran.stderr
    assert ran.stdout == "built in here\nreturned 7\n"


# ---- What CMake finds ---------------------------------------------------------------------------------------------


def configure(tmp_path, *settings, **environment):
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-DFORGE_PACKAGE_ONLY=ON", "-DFORGE_CUDA=OFF"]
    command += [f"-DFORGE_PYTHON={sys.executable}", *settings]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.count("CMake Error") == 1
    return " ".join(ran.stderr.split())


@pytest.mark.parametrize("reason", ["libcudart.so.13: cannot open shared object file", "No module named 'numpy'", ""])
def test_a_torch_that_cannot_be_imported_ends_the_build_with_its_reason(tmp_path, reason):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(f"raise ImportError({reason!r})")
    error = configure(tmp_path, PYTHONPATH=str(tmp_path))
    assert f"forge: {sys.executable} cannot import its torch (ImportError{reason and ': ' + reason}): build" in error


def test_a_python_without_headers_is_named_with_the_package_that_has_them(tmp_path):
    error = configure(tmp_path, "-DPython_INCLUDE_DIR=/nowhere")
    assert f"forge: {sys.executable} has no headers" in error
    assert f"`apt install python{sys.version_info.major}.{sys.version_info.minor}-dev`" in error
