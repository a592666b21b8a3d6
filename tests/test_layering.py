"""The include ladder: base <- rules, formats, gradient <- kernels, plan <- torch <- apps, python."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ALLOWED = {
    "base": {"base"},
    "rules": {"base", "rules"},
    "formats": {"base", "formats"},
    "gradient": {"base", "gradient"},
    "plan": {"base", "rules", "formats", "gradient", "plan"},
    "kernels": {"base", "rules", "formats", "gradient", "kernels"},
    "torch": {"base", "rules", "formats", "gradient", "kernels", "plan", "torch"},
}
LAYERS = set(ALLOWED)

# Headers of other projects, and the only folders that may name them.
FOREIGN = [
    (
        "CUDA",
        re.compile(r"^(cuda\w*|cublas\w*|cusparse\w*|nvrtc|nvToolsExt|mma|cooperative_groups)\.h"
                   r"|^(cuda|cub|cute|cutlass|thrust|nvtx3|cooperative_groups)/"),
        ("forge/kernels/cuda/", "bench/gpu_check/"),
    ),
    ("torch", re.compile(r"^(torch|ATen|c10|caffe2)/"), ("forge/torch/", "apps/", "python/")),
    ("pybind11", re.compile(r"^(pybind11/|torch/csrc/utils/pybind\.h$|torch/extension\.h$|Python\.h$)"), ("python/",)),
    ("Highway", re.compile(r"^hwy/"), ("forge/kernels/cpu/",)),
]

CODE_ROOTS = ["forge", "apps", "bench", "python"]
CODE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
NAMED_ROOTS = [*CODE_ROOTS, "cmake", "docs", "script", "tests"]
SKIPPED_FOLDERS = {"__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}

INCLUDE = re.compile(r"""^\s*#\s*include\s*[<"]([^>"]+)[>"]""", re.MULTILINE)
VERSION_IN_NAME = re.compile(r"(^|[_.-])v\d+([_.-]|$)|\d\.\d", re.IGNORECASE)


def files_under(root, tops):
    for top in tops:
        for folder, folders, names in os.walk(root / top):
            folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
            for name in sorted(names):
                yield Path(folder, name)


def layer_of(path):
    """forge/rules/adamw.h is of layer rules; what lies in apps, bench and python is of none."""
    parts = path.split("/")
    return parts[1] if parts[0] == "forge" and len(parts) > 2 else None


def violations_of_include(root, path, target):
    # An include relative to the file must not be a way round the ladder.
    beside = os.path.relpath(os.path.normpath((root / path).parent / target), root)
    if not target.startswith("forge/") and (root / beside).exists():
        target = Path(beside).as_posix()

    if target.endswith(".cpp"):
        yield f"{path}: includes a source file, {target}"
    for name, pattern, places in FOREIGN:
        if pattern.search(target) and not path.startswith(places):
            yield f"{path}: names a {name} header, {target}"

    layer = layer_of(path)
    if target.startswith("forge/"):
        is_test = path.endswith("_test.cpp") or path.startswith(("forge/base/testing/", "bench/"))
        if target.startswith("forge/base/testing/") and not is_test:
            yield f"{path}: is no test and includes {target}"
        if layer_of(target) not in LAYERS:
            yield f"{path}: includes {target}, which is in no layer"
        elif layer in LAYERS and layer_of(target) not in ALLOWED[layer]:
            yield f"{path}: {layer} includes {layer_of(target)}, {target}"
    for door, whose in (("apps/", "an app's"), ("python/", "the Python package's")):
        if target.startswith(door) and not path.startswith(door):
            yield f"{path}: includes {whose} header, {target}"


def violations(root):
    found = []
    for file in files_under(root, CODE_ROOTS):
        path = file.relative_to(root).as_posix()
        if file.suffix not in CODE_SUFFIXES:
            continue
        text = file.read_text(encoding="utf-8")
        if path.startswith("forge/") and layer_of(path) not in LAYERS:
            found.append(f"{path}: lies in no layer")
        if file.suffix in {".h", ".cuh"} and not re.search(r"^#pragma once$", text, re.MULTILINE):
            found.append(f"{path}: lacks #pragma once")
        for target in INCLUDE.findall(text):
            found.extend(violations_of_include(root, path, target))
    for file in files_under(root, NAMED_ROOTS):
        if VERSION_IN_NAME.search(file.name):
            found.append(f"{file.relative_to(root).as_posix()}: carries a version number in its name")
    return found


def test_the_tree_obeys_the_ladder():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("forge/base/span.h", "forge/base/assert.h"),
        ("forge/rules/adamw.cpp", "forge/base/span.h"),
        ("forge/plan/plan.cpp", "forge/gradient/tile.h"),
        ("forge/kernels/cpu/gemm_isa.cpp", "hwy/highway.h"),
        ("forge/kernels/cuda/gemm.cu", "cuda_runtime.h"),
        ("forge/torch/linear.cpp", "forge/plan/plan.h"),
        ("forge/torch/linear.cpp", "ATen/core/Tensor.h"),
        ("forge/rules/adamw_test.cpp", "forge/base/testing/ulp.h"),
        ("apps/forge/main.cpp", "forge/torch/linear.h"),
        ("apps/forge/main.cpp", "torch/library.h"),
        ("python/bindings/module.cpp", "forge/torch/linear.h"),
        ("python/bindings/module.cpp", "torch/csrc/utils/pybind.h"),
        ("python/bindings/module.cpp", "pybind11/stl.h"),
        ("bench/gemm.cpp", "forge/kernels/gemm.h"),
        ("forge/kernels/cpu/fp8_e4m3.h", "cstdint"),
    ],
)
def test_what_the_ladder_allows(tmp_path, path, target):
    plant(tmp_path, path, f"#pragma once\n#include <{target}>\n")
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "target", "complaint"),
    [
        ("forge/base/span.h", "forge/rules/adamw.h", "base includes rules"),
        ("forge/rules/adamw.h", "forge/formats/bf16.h", "rules includes formats"),
        ("forge/formats/bf16.h", "forge/gradient/tile.h", "formats includes gradient"),
        ("forge/gradient/tile.h", "forge/rules/adamw.h", "gradient includes rules"),
        ("forge/plan/plan.h", "forge/kernels/gemm.h", "plan includes kernels"),
        ("forge/kernels/gemm.h", "forge/plan/plan.h", "kernels includes plan"),
        ("forge/kernels/gemm_test.cpp", "forge/torch/linear.h", "kernels includes torch"),
        ("forge/torch/linear.cpp", "apps/forge/train.h", "includes an app's header"),
        ("forge/torch/linear.cpp", "python/bindings/module.h", "includes the Python package's header"),
        ("apps/forge/main.cpp", "python/bindings/module.h", "includes the Python package's header"),
        ("python/bindings/module.cpp", "apps/forge/train.h", "includes an app's header"),
        ("forge/torch/linear.cpp", "pybind11/pybind11.h", "names a pybind11 header"),
        ("apps/forge/main.cpp", "Python.h", "names a pybind11 header"),
        ("forge/rules/adamw.cpp", "forge/base/testing/ulp.h", "is no test"),
        ("forge/rules/adamw.cpp", "forge/extras/more.h", "in no layer"),
        ("forge/extras/more.h", "vector", "lies in no layer"),
        ("forge/kernels/cpu/gemm.cpp", "cuda_bf16.h", "names a CUDA header"),
        ("forge/torch/linear.cpp", "cuda_runtime.h", "names a CUDA header"),
        ("forge/kernels/cuda/gemm.cu", "ATen/core/Tensor.h", "names a torch header"),
        ("forge/plan/plan.cpp", "c10/util/Half.h", "names a torch header"),
        ("forge/base/span.h", "hwy/base.h", "names a Highway header"),
        ("forge/kernels/no_cpu/gemm.cpp", "hwy/highway.h", "names a Highway header"),
        ("apps/forge/main.cpp", "forge/torch/linear.cpp", "includes a source file"),
    ],
)
def test_a_planted_include_is_found(tmp_path, path, target, complaint):
    plant(tmp_path, path, f'#pragma once\n  #  include "{target}"\n')
    (found,) = violations(tmp_path)
    assert complaint in found


def test_a_relative_include_is_no_way_round(tmp_path):
    plant(tmp_path, "forge/rules/adamw.h", "#pragma once\n")
    plant(tmp_path, "forge/base/span.h", '#pragma once\n#include "../rules/adamw.h"\n')
    assert violations(tmp_path) == ["forge/base/span.h: base includes rules, forge/rules/adamw.h"]


def test_a_missing_pragma_once_is_found(tmp_path):
    plant(tmp_path, "forge/base/span.h", "// #pragma once\n")
    assert violations(tmp_path) == ["forge/base/span.h: lacks #pragma once"]


@pytest.mark.parametrize(
    "path", ["forge/rules/adamw_v2.cpp", "docs/plan-1.2.md", "script/v3.py", "cmake/Torch.V1.cmake"]
)
def test_a_version_in_a_file_name_is_found(tmp_path, path):
    plant(tmp_path, path, "")
    assert violations(tmp_path) == [f"{path}: carries a version number in its name"]


def plant(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
