"""What nvcc makes of the CUDA kernels: no GPU is needed, and where there is no nvcc these are skipped."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "bench/results/cuda-kernels.json"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda_kernels = load(ROOT / "bench/cuda_kernels.py")
needs_compiler = pytest.mark.skipif(
    bool(cuda_kernels.missing_tools()), reason=f"not found: {', '.join(cuda_kernels.missing_tools())}"
)


@pytest.fixture(scope="module", params=cuda_kernels.ARCHITECTURES)
def compiled(request):
    folder = ROOT / "build/cuda_kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return request.param, cuda_kernels.compile_kernels(request.param, folder)


def is_tile_kernel(name):
    return name.startswith(("update_tiles<", "store_tiles<"))


def is_on_hopper(name):
    return "_on_hopper" in name


@needs_compiler
def test_every_instance_is_there(compiled):
    architecture, kernels = compiled
    instances = cuda_kernels.chosen_instances(architecture)
    expected = {f"update_tiles<{', '.join((cuda_kernels.CHAINS[chain], *one))}>" for chain, *one in instances}
    assert expected == {name for name in kernels if name.startswith("update_tiles<")}
    on_hopper = cuda_kernels.instances_on_hopper(architecture)
    expected = {f"update_tiles_on_hopper<{', '.join(one)}>" for one in on_hopper} | {"store_tiles_on_hopper"}
    assert expected == {name for name in kernels if is_on_hopper(name)}
    others = {f"{kernel}<{chain}>" for kernel in ("store_tiles", "square_rows") for chain in ("ffma", "mma")}
    others |= {f"update_rows<{rule}>" for rule in cuda_kernels.rules_of_rows(architecture)}
    others |= {f"next_constants<{rule}>" for rule in cuda_kernels.rules_that_sum(architecture)}
    assert others | {"add_rows_sums", "square_lines", "square_columns"} <= set(kernels)


@needs_compiler
def test_nothing_is_spilled_or_kept_in_local_memory(compiled):
    _, kernels = compiled
    for name, numbers in kernels.items():
        assert numbers["spilled_bytes"] == numbers["stack_bytes"] == numbers["local_accesses"] == 0, name


@needs_compiler
def test_two_blocks_of_tiles_fit_on_a_multiprocessor(compiled):
    """65,536 registers, 2 · 256 threads."""
    _, kernels = compiled
    for name, numbers in kernels.items():
        if is_tile_kernel(name):
            assert numbers["registers"] <= 128, name


@needs_compiler
def test_a_stage_is_unrolled(compiled):
    """16 tokens and the one of the tail, 8 · 8 multiply-adds each. On tensor cores two steps of 4 · 4 products, of bf16
    and of fp16, and 4 + 2 loads of matrices for each."""
    _, kernels = compiled
    for name, numbers in kernels.items():
        if "<ffma" in name:
            assert numbers["fused_multiply_adds"] >= 17 * 64, name
        if "<mma" in name:
            assert numbers["tensor_products"] == 2 * 2 * 16 and numbers["matrix_loads"] == 2 * 2 * 6, name


def matrices_in_fp32(rule, weight, state):
    return (weight == "fp32") + (state == "fp32") * {"AdamW": 2, "SgdMomentum": 1, "Lion": 1}[rule]


@needs_compiler
def test_fp32_is_moved_in_fours(compiled):
    """Each matrix in fp32 is loaded before the first row and one row ahead, and stored; the gradient's operands are
    loaded as store_tiles loads them."""
    _, kernels = compiled
    of_gradient = {chain: kernels[f"store_tiles<{chain}>"]["loads_of_128_bits"] for chain in ("ffma", "mma")}
    for name, numbers in kernels.items():
        if not name.startswith("update_tiles<"):
            continue
        chain, rule, weight, state = name[len("update_tiles<") : -1].split(", ")
        matrices = matrices_in_fp32(rule, weight, state)
        assert numbers["loads_of_128_bits"] == of_gradient[chain] + 2 * matrices, name
        assert numbers["stores_of_128_bits"] == matrices, name


@needs_compiler
def test_kernels_on_hopper_are_as_they_are_written(compiled):
    """65,536 registers for 384 threads, which share them out when they run. A stage is four products of 16 tokens for
    each half of the tile, and four boxes; two rows of each matrix in fp32 are loaded ahead of the first, and two and
    stored in the loop. For other architectures they stop."""
    architecture, kernels = compiled
    for name, numbers in kernels.items():
        if not is_on_hopper(name):
            continue
        if architecture != "sm_90a":
            assert numbers["instructions"] < 20 and numbers["warpgroup_products"] == 0, name
            continue
        assert numbers["registers"] * 384 <= 65536, name
        assert numbers["warpgroup_products"] == 8 and numbers["tensor_map_loads"] == 4, name
        if name.startswith("update_tiles_on_hopper<"):
            matrices = matrices_in_fp32(*name[len("update_tiles_on_hopper<") : -1].split(", "))
            assert numbers["loads_of_128_bits"] == 4 * matrices, name
            assert numbers["stores_of_128_bits"] == 2 * matrices, name


@needs_compiler
def test_instructions_are_those_recorded(compiled):
    """Within a twentieth, by the same release of the compiler: whoever makes a kernel longer says so."""
    architecture, kernels = compiled
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    if recorded["nvcc"] != cuda_kernels.compiler_release():
        pytest.skip(f"recorded with nvcc {recorded['nvcc']}")
    before = recorded["kernels"][architecture]
    assert set(kernels) == set(before), "record again: bench/cuda_kernels.py --json bench/results/cuda-kernels.json"
    for name, numbers in kernels.items():
        assert numbers["instructions"] == pytest.approx(before[name]["instructions"], rel=0.05), name


PTXAS = """ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90a'
ptxas info    : Function properties for _Z1kPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 8 bytes cumulative stack size
"""
SASS = """\tFunction : _Z1kPf
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   STL [R1], R4 ;
        /*0030*/             @UPT0 STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*0040*/                   FFMA R5, R4, R4, R5 ;
        /*0050*/                   LDSM.16.MT88.4 R4, [R1] ;
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0070*/                   UTMALDG.2D [UR8], [UR4] ;
        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8].tnspA.tnspB, R24, gsb0 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   NOP;
"""


def test_spills_and_local_memory_are_read():
    assert cuda_kernels.read_ptxas(PTXAS) == {"_Z1kPf": {"registers": 128, "stack_bytes": 8, "spilled_bytes": 16}}
    assert cuda_kernels.count_instructions(SASS) == {
        "_Z1kPf": {
            "instructions": 10,
            "fused_multiply_adds": 1,
            "tensor_products": 1,
            "matrix_loads": 1,
            "warpgroup_products": 1,
            "tensor_map_loads": 1,
            "local_accesses": 1,
            "loads_of_128_bits": 1,
            "stores_of_128_bits": 1,
        }
    }


def test_the_list_of_instances_is_read():
    instances = cuda_kernels.fused_instances()
    assert ("AdamW", "bf16_stochastic", "int8") in instances
    assert len(instances) == len(set(instances)) == 15
    on_hopper = cuda_kernels.fused_instances("for_each_fused_on_hopper")
    assert len(on_hopper) == 5 and set(on_hopper) <= set(instances)
