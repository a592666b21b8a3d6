"""The wheel: what it holds, and that it works where nothing else of this repository is."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
# What a rule of one's own includes.
RULE_LAYERS = ["base", "rules", "formats", "gradient", "kernels"]


def pip(*arguments, **settings):
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, **settings)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # CMake's own choice for `make build`. scikit-build-core takes the name in Python's sysconfig, often g++: the same
    # compiler, but ccache goes by the name.
    environment = {"CXX": "c++"} | os.environ
    built = pip("wheel", str(ROOT), "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_it_holds_the_package_and_nothing_else(wheel):
    python_files = [path.relative_to(ROOT / "python") for path in (ROOT / "python/forge_optim").rglob("*.py")]
    expected = {path.as_posix() for path in python_files}
    expected |= {f"forge_optim/{name}" for name in ("py.typed", f"_C{SUFFIX}", "libforge_torch.so")}
    headers = [path.relative_to(ROOT) for layer in RULE_LAYERS for path in (ROOT / "forge" / layer).rglob("*.h")]
    expected |= {f"forge_optim/include/{path.as_posix()}" for path in headers if "testing" not in path.parts}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_its_tag_is_that_of_this_python(wheel):
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name.endswith(f"-{python}-{python}-{platform}.whl")


def test_it_asks_for_the_torch_it_was_built_with(wheel):
    import torch

    major, minor = torch.__version__.split(".")[:2]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert f"Requires-Dist: torch=={major}.{minor}.*\n" in metadata


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    installed = pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return folder


def printed(site, folder, script):
    environment = os.environ | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder)}
    ran = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_installed_it_imports_from_anywhere(site, tmp_path):
    script = "import forge_optim; print(forge_optim.__file__, forge_optim._C.__file__)"
    package = site / "forge_optim"
    assert printed(site, tmp_path, script) == [str(package / "__init__.py"), str(package / f"_C{SUFFIX}")]


def test_installed_it_compiles_a_rule_of_ones_own(site, tmp_path):
    file = ROOT / "examples/rules/cwd_adamw.cpp"
    script = f"import forge_optim; print(forge_optim.load_rule({str(file)!r}).__name__)"
    assert printed(site, tmp_path, script) == ["CwdAdamW"]
