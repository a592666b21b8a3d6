#!/usr/bin/env python3
"""Compiles the CUDA kernels and counts what became of them: registers, spills, instructions. Needs nvcc and no GPU.

    bench/cuda_kernels.py                                       a table
    bench/cuda_kernels.py --json bench/results/cuda-kernels.json
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "forge/kernels/cuda"
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
# Multiply-adds are spelled in the source: the compiler forms none of its own, as on a CPU.
FLAGS = ["-std=c++20", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v", f"-I{ROOT}"]


def find_tool(name):
    """On the path, in CUDA's usual place or among the Python packages; None where there is none."""
    packages = [Path(sysconfig.get_path(key)) / "nvidia/cu13/bin" for key in ("purelib", "platlib")]
    places = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", *map(str, packages)]
    return shutil.which(name, path=os.pathsep.join(places))


def missing_tools():
    return [name for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if not find_tool(name)]


def compiler_release():
    text = subprocess.run([find_tool("nvcc"), "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", text).group(1)


def fused_instances(which="for_each_fused"):
    """(rule, weight format, format of the moments) of each fused kernel, as a list of instances.h has them."""
    text = (SOURCES / "instances.h").read_text(encoding="utf-8")
    listed = re.search(rf"void {which}\(F&& f\) {{(.*?)\n}}", text, re.DOTALL).group(1)
    rules = re.findall(r"for_each_storage<rules::(\w+)>", listed)
    storages = re.findall(r"operator\(\)<Rule, Format::(\w+), Format::(\w+)>", text)
    return [(rule, *storage) for rule in rules for storage in storages]


CHAINS = {"FfmaChain": "ffma", "MmaChain": "mma"}

def rules_that_sum(architecture):
    return ["LambMoments"] if architecture == "sm_90a" else []


def rules_of_rows(architecture):
    """Fed from memory, one element-wise rule and, for sm_90a, one that sums stand for all: what is long is the formats,
    which are chosen when a kernel runs."""
    return ["AdamW", *rules_that_sum(architecture)]


def chosen_instances(architecture):
    """(chain, rule, weight format, format of the moments): the first rule in every pair of formats and every rule in
    the first pair, which stand for the others; on tensor cores all of these for sm_90a, one elsewhere."""
    every = fused_instances()
    chosen = [one for one in every if one[0] == every[0][0] or one[1:] == every[0][1:]]
    on_tensor_cores = chosen if architecture == "sm_90a" else chosen[1:2]
    return [("FfmaChain", *one) for one in chosen] + [("MmaChain", *one) for one in on_tensor_cores]


def instances_on_hopper(architecture):
    """The same of Hopper's own kernels, which for other architectures are empty."""
    return fused_instances("for_each_fused_on_hopper") if architecture == "sm_90a" else []


def operation_of(rule, weight, state):
    return f"RowOperation<rules::{rule}, Fixed<Format::{weight}>, Fixed<Format::{state}>>"


def source_of(architecture):
    headers = ("ffma", "hopper", "mma", "next_pass", "sums", "tiles", "update_rows")
    lines = [
        *(f'#include "forge/kernels/cuda/{name}.cuh"' for name in headers),
        "using namespace forge;",
        "using namespace forge::cuda;",
    ]
    for chain, *one in chosen_instances(architecture):
        operation = operation_of(*one)
        lines.append(
            f"template __global__ void forge::cuda::update_tiles<{chain}, {operation}>"
            f"(FORGE_PARAMETER(UpdateArguments<{operation}>));"
        )
    for chain in CHAINS:
        for kernel, arguments in (("store_tiles", "StoreArguments"), ("square_rows", "NormArguments")):
            lines.append(f"template __global__ void forge::cuda::{kernel}<{chain}>(FORGE_PARAMETER({arguments}));")
    for one in instances_on_hopper(architecture):
        operation = operation_of(*one)
        lines.append(
            f"template __global__ void forge::cuda::update_tiles_on_hopper<{operation}>"
            f"(FORGE_PARAMETER(HopperArguments<RowUpdate<{operation}>>));"
        )
    for rule in rules_that_sum(architecture):
        lines.append(
            f"template __global__ void forge::cuda::next_constants<rules::{rule}>"
            f"(FORGE_PARAMETER(NextArguments<rules::{rule}>));"
        )
    for rule in rules_of_rows(architecture):
        lines.append(
            f"template __global__ void forge::cuda::update_rows<rules::{rule}>"
            f"(FORGE_PARAMETER(RowsArguments<rules::{rule}>));"
        )
    return "\n".join(lines) + "\n"


def short_name(mangled):
    """_ZN5forge4cuda12update_tiles… → update_tiles<mma, AdamW, bf16_stochastic, int8>"""
    name = subprocess.run([find_tool("c++filt"), mangled], check=True, capture_output=True, text=True).stdout.strip()
    kernel = re.search(r"forge::cuda::(\w+)", name).group(1)
    formats = re.findall(r"kFormats\[\] = \{(.*?)\n\};", (ROOT / "forge/formats/format.h").read_text(), re.DOTALL)
    names = re.findall(r'\{"(\w+)"', formats[0])
    rule = re.search(r"forge::rules::(\w+)(?:<forge::(\w+)Options)?", name)
    parts = [CHAINS[chain] for chain in re.findall(r"forge::cuda::(\w+Chain)\b", name)[:1]]
    parts += [rule.group(2) or rule.group(1)] if rule else []
    parts += [names[int(number)] for number in re.findall(r"forge::cuda::Fixed<\(forge::Format\)(\d+)>", name)[:2]]
    return kernel + (f"<{', '.join(parts)}>" if parts else "")


def read_ptxas(log):
    kernels = {}
    for block in log.split("Compiling entry function ")[1:]:
        name = re.match(r"'(\w+)'", block).group(1)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        stack, stores, loads = map(int, memory.groups())
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        kernels[name] = {"registers": registers, "stack_bytes": stack, "spilled_bytes": stores + loads}
    return kernels


def count_instructions(sass):
    """Of each kernel: all instructions but the padding, and those that the gates look at."""
    counts = {}
    for block in sass.split("Function : ")[1:]:
        words = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", block)
        words = [word for word in words if word != "NOP"]
        kinds = Counter(word.split(".")[0] for word in words)
        counts[block.split()[0]] = {
            "instructions": len(words),
            "fused_multiply_adds": kinds["FFMA"],
            "tensor_products": kinds["HMMA"],
            "matrix_loads": kinds["LDSM"],
            "warpgroup_products": kinds["HGMMA"],
            "tensor_map_loads": kinds["UTMALDG"],
            "local_accesses": kinds["LDL"] + kinds["STL"],
            "loads_of_128_bits": sum(word.startswith("LDG.") and ".128" in word for word in words),
            "stores_of_128_bits": sum(word.startswith("STG.") and ".128" in word for word in words),
        }
    return counts


def compile_kernels(architecture, folder):
    """What the compiler says of each kernel for an architecture. Warnings are errors, and so is what it says where it
    has products of a warpgroup wait for each other."""
    folder = Path(folder)
    source, built = folder / f"kernels_{architecture}.cu", folder / f"kernels_{architecture}.o"
    source.write_text(source_of(architecture), encoding="utf-8")
    # Code for that architecture alone; -arch would translate everything once more, to ptx.
    target = f"arch={architecture.replace('sm', 'compute')},code={architecture}"
    command = [find_tool("nvcc"), *FLAGS, "-gencode", target, "-c", str(source), "-o", str(built)]
    if shutil.which("ccache"):
        command = ["ccache", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode != 0 or "warning" in log or "Performance Loss" in log:
        raise RuntimeError(log)
    kernels = read_ptxas(log)
    sass = subprocess.run([find_tool("cuobjdump"), "-sass", str(built)], check=True, capture_output=True, text=True)
    for name, counts in count_instructions(sass.stdout).items():
        kernels[name] |= counts
    return {short_name(name): numbers for name, numbers in sorted(kernels.items())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/cuda_kernels")
    arguments = parser.parse_args()
    if missing_tools():
        sys.exit(f"cuda_kernels: {', '.join(missing_tools())} not found")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = {"nvcc": compiler_release(), "kernels": {}}
    for architecture in ARCHITECTURES:
        results["kernels"][architecture] = compile_kernels(architecture, arguments.folder)
        for name, n in results["kernels"][architecture].items():
            print(f"{architecture:7} {name:58} {n['registers']:4} registers {n['spilled_bytes']:4} B spilled "
                  f"{n['instructions']:6} instructions")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
