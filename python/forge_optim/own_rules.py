"""Optimizers of one's own: a rule is one C++ file, compiled here once and loaded (docs/rules.md)."""

from __future__ import annotations

import hashlib
import inspect
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import _C
from .optimizers import FusedOptimizer, Params
from .published import Published

_PACKAGE = Path(_C.__file__).parent
_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", f"-I{_PACKAGE / 'include'}"]
# What the sources are told of each instruction set that kernels have (forge/kernels/cpu/isa.h).
_ISA_OF_TARGET = {"avx2": "AVX2", "avx512": "AVX3", "neon": "STATIC"}

_classes: dict[str, type[FusedOptimizer]] = {}


def __getattr__(name: str) -> Any:
    """The classes of loaded rules, for pickle."""
    if name in _classes:
        return _classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; load_rule() the optimizer's file first")


def load_rule(path: str | os.PathLike[str]) -> type[FusedOptimizer]:
    """The optimizer of a rule of one's own, a class as ``forge_optim.Lion`` is.

    path: a C++ file that ends with FORGE_REGISTER_OPTIMIZER, which is compiled with $CXX, c++, g++ or clang++ and kept
        in $XDG_CACHE_HOME/forge_optim or ~/.cache/forge_optim; or a shared library of one (CMake's forge_add_rule).

    Its constructor takes the options of the rule by position or name, those of a tuple as a tuple, and what all
    optimizers here take. A file that is loaded again gives the same class. RuntimeError where the file does not
    compile, with the compiler's message, and where the optimizer's name is taken.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise RuntimeError(f"load_rule: there is no file {file}")
    names = _C.load_rule_library(str(file if _is_library(file) else _compiled(file)))
    if len(names) != 1:
        raise RuntimeError(f"load_rule: {file} has the optimizers {', '.join(names)}; give a library of one")
    (name,) = names
    if name not in _classes:
        _classes[name] = _make_class(name)
    return _classes[name]


# ---- The class -----------------------------------------------------------------------------------------------------


class _OwnRule(Published):
    """Takes the options of its rule as its signature has them."""

    def __init__(self, params: Params, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(type(self)).bind(params, *args, **kwargs)
        bound.apply_defaults()
        options = bound.arguments.pop("options")
        bound.arguments.pop("params")
        super().__init__(params, dict(bound.arguments), **options)


def _defaults(name: str) -> dict[str, Any]:
    """An optimizer's options, in order; those of one tuple stand at its first."""
    defaults: dict[str, Any] = {}
    for option, tuple_name, place, value in _C.rule_options(name):
        if tuple_name is None:
            defaults[option] = value
            continue
        values = defaults.get(tuple_name, ())
        if place != len(values):
            raise RuntimeError(f"{name}: {option} has place {place} in {tuple_name}; fields() gives places in order")
        defaults[tuple_name] = (*values, value)
    return defaults


def _make_class(name: str) -> type[FusedOptimizer]:
    defaults = _defaults(name)
    if taken := defaults.keys() & {"params", "options", *inspect.signature(FusedOptimizer).parameters}:
        raise RuntimeError(f"{name}: {', '.join(sorted(taken))} is an argument of every optimizer; rename the option")
    either, rest = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_KEYWORD
    parameters = [inspect.Parameter(option, either, default=value) for option, value in defaults.items()]
    signature = inspect.Signature(
        [inspect.Parameter("params", either), *parameters, inspect.Parameter("options", rest)]
    )
    about = f"{name}, a rule of one's own. Beside its options it takes what ``forge_optim.AdamW`` does."
    members = {"_rule": name, "__doc__": about, "__module__": __name__, "__signature__": signature}
    return type(name, (_OwnRule,), members)


# ---- The compiler --------------------------------------------------------------------------------------------------


def _is_library(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"


def _compiler() -> list[str]:
    if given := shlex.split(os.environ.get("CXX", "")):
        return given
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise RuntimeError(
        "load_rule: there is no C++ compiler; install one (Debian, Ubuntu: g++) or set CXX, or load a library that was "
        "compiled elsewhere"
    )


def _run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, capture_output=True, check=False, **kwargs)
    except OSError as error:
        raise RuntimeError(f"load_rule: {command[0]} does not run: {error.strerror}") from error


def _checked(file: Path, result: subprocess.CompletedProcess[bytes]) -> bytes:
    if result.returncode:
        raise RuntimeError(f"load_rule: {file} does not compile:\n{result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def _isas(compiler: list[str]) -> list[str]:
    """The instruction sets to compile for: none where their header is missing."""
    isas = [_ISA_OF_TARGET[target] for target in _C.targets() if target != "ref"]
    has_header = not _run([*compiler, "-E", "-x", "c++", "-"], input=b"#include <hwy/highway.h>").returncode
    if isas and not has_header:
        warnings.warn(
            "load_rule: the compiler does not find hwy/highway.h, so the rule runs in plain loops, with the same bits "
            "and much slower; install Highway (Debian, Ubuntu: libhwy-dev)",
            RuntimeWarning,
            stacklevel=4,
        )
    return isas if has_header else []


def _compiled(file: Path) -> Path:
    """The library of a rule's file, from the cache where everything that goes into it is the same."""
    compiler = _compiler()
    isas = _isas(compiler)
    with ThreadPoolExecutor() as threads:
        read = [[*compiler, *_FLAGS, *_define(isa), "-E", "-x", "c++", str(file)] for isa in ("", *isas)]
        preprocessed = b"".join(_checked(file, result) for result in threads.map(_run, read))
    key = hashlib.sha256(preprocessed + repr((compiler, _FLAGS, isas)).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forge_optim"
    compiled = cache / f"{file.stem}-{key[:32]}.so"
    if not compiled.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _build(compiler, file, isas, Path(folder)).replace(compiled)  # at once: other processes may compile it too
    return compiled


def _define(isa: str) -> list[str]:
    """The flag that makes a file the half of its rule for an instruction set; none for the host's."""
    return [f"-DFORGE_ISA_{isa}"] if isa else []


def _build(compiler: list[str], file: Path, isas: list[str], folder: Path) -> Path:
    def compile_for(isa: str) -> str:
        object_file = str(folder / f"rule{isa}.o")
        _checked(file, _run([*compiler, *_FLAGS, *_define(isa), "-x", "c++", "-c", str(file), "-o", object_file]))
        return object_file

    with ThreadPoolExecutor() as threads:
        objects = list(threads.map(compile_for, ["", *isas]))
    library = folder / "rule.so"
    _checked(file, _run([*compiler, "-shared", *objects, str(_PACKAGE / "libforge_torch.so"), "-o", str(library)]))
    return library
