"""Break the CUDA kernels on purpose, one edit at a time: the emulated machine has to notice each."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("FORGE_BUILD", ROOT / "build" / "release")).resolve()
CORE = BUILD / "libforge_core.a"
KERNELS = Path("forge/kernels/cuda")
MACHINE = ["barriers", "cp_async", "device_memory", "mma", "scheduler", "shared_memory", "tma", "wgmma"]
OBJECTS = ["tiles", "stored", "rows", "sums", "hopper"]
# What of an object is run: its name, or this.
RUNS = {"halves": "tiles"}
PARTS = [*OBJECTS, *RUNS]
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]
FLAGS += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
EMULATED = [*FLAGS, '-DFORGE_EMULATE="tests/emulator/twins.h"']
# Read once: what the kernels include is most of what there is to compile.
PREFIX = ["forge/formats/list.h", "forge/formats/philox.h", "forge/gradient/terms.h", "forge/rules/list.h"]

TILE, FFMA, MMA, TILES, ARGUMENTS, HOPPER = "tile.cuh", "ffma.cuh", "mma.cuh", "tiles.cuh", "arguments.cu", "hopper.cuh"
STORED, COLUMNS, ROW, ROWS, NUMBERS = "stored.cuh", "columns.cuh", "row_operation.cuh", "update_rows.cuh", "numbers.cuh"
SUM, LINES = "row_sum.cuh", "sums.cuh"

LEFT = "  __syncthreads();  // everyone has left what shared memory held before\n"

LAST = "    ring.release(turn * tiles.steps + tiles.steps - 1);\n"
MULTIPLY = "    multiply(ring, turn * tiles.steps, tiles.steps, g);\n"
TURN = "    if (tile + static_cast<int>(gridDim.x) < tiles.count()) barrier_arrive(kMultiply + 1 - group, kBoth);\n"
FOUR = "g[4 * i + 2 * half], g[4 * i + 2 * half + 1]"

# ruff: noqa: E501
# Part, what is wrong, file, text that stands there once, what stands there instead.
MUTANTS = [
    # Barriers and stages.
    ("tiles", "waits for one group of copies too few", TILE, "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>"),
    ("tiles", "no barrier in the main loop", TILE, "      __syncthreads();  // this stage", "      // this stage"),
    ("tiles", "a stage loaded that is computed on", TILE,
     "    if (step + kAhead < steps) load(step + kAhead);",
     "    if (step >= 0 && step + kStages < steps) load(step + kStages);\n    if (step < 0) load(step + kAhead);"),
    ("tiles", "a product begins on what others still read", TILE, "kStages - 1;\n" + LEFT, "kStages - 1;\n"),
    ("tiles", "the tile stored over what others still read", TILES,
     "tile);\n" + LEFT, "tile);\n"),
    ("tiles", "the strip read before it is written", TILES, "tile.store(strip);\n  __syncthreads();\n", "tile.store(strip);\n"),
    ("tiles", "a dense term read before it is there", TILE,
     "  __syncthreads();\n  tile.each([&]", "  tile.each([&]"),
    # The chain.
    ("stored", "zeros behind the last token multiplied", FFMA, "if (left >= kStageTokens)", "if (left > 0)"),
    ("stored", "the last tokens left out", FFMA,
     "(term.tokens - 1 + kStageTokens) / kStageTokens", "term.tokens / kStageTokens"),
    ("stored", "a product rounded before it is added", FFMA, "g = std::fma(dy[i], x[j], g);", "g += dy[i] * x[j];"),
    ("stored", "columns of a fragment exchanged", FFMA, "j / 4 * 16 + j % 4", "j / 4 * 16 + (j % 4 ^ 1)"),
    ("stored", "rows of a fragment from other lanes", FFMA, "lane / 4 * kThreadTile", "lane % 8 * kThreadTile"),
    ("stored", "an operand read by the columns of the other", FFMA, "1.f, col, all.in, term", "1.f, col, all.out, term"),
    ("stored", "a scaled operand taken as it is", ARGUMENTS, "arguments_of(t.dY, t.scale)", "arguments_of(t.dY)"),
    ("stored", "rows added one below", FFMA, "g = i == place ?", "g = i == place + 1 ?"),
    # Tensor cores.
    ("halves", "matrices of dY in another order", MMA, "token + row + 8 * right", "token + row + 8 * upper"),
    ("halves", "columns of X in another order", MMA, "2 * j + right", "2 * j + upper"),
    ("halves", "both products with the same columns", MMA, "mma_fp16(tile.g[i][j], a[i], b[j / 2] + j % 2 * 2)", "mma_fp16(tile.g[i][j], a[i], b[j / 2])"),
    ("halves", "the last products left out", MMA, "+ token < term.tokens", "+ token + 15 < term.tokens"),
    ("halves", "no mask on columns", MMA, "left < kPiece ? left : kPiece", "kPiece"),
    ("halves", "rows of a product 8 apart exchanged", MMA, "v / 2 * 8", "v % 2 * 8"),
    ("halves", "halves of a word exchanged", MMA, "(i % 2 * 16)", "((i + 1) % 2 * 16)"),
    ("halves", "a piece stored where it is not read", MMA, "place(stage, token, piece)", "place(stage, token, piece ^ 1)"),
    ("halves", "half precision multiplied as bf16", MMA, "term.first.dtype == DType::bf16", "term.first.dtype != DType::f32"),
    # The fused update.
    ("tiles", "the gradient not scaled", ROW, "numbers}, scale, step", "numbers}, 1.f, step"),
    ("tiles", "a row ahead of its place", TILES, "end.load(row + kChainWarps);", "end.load(row + kChainWarps + 1);"),
    ("stored", "no mask on columns", STORED, "left < 0 ? 0 : left < kThreadColumns ? left : kThreadColumns", "left > 0 ? 4 : 0"),
    # The norm.
    ("stored", "a lane of every eighth column", TILES, "c += kNormLanes", "c += kNormLanes / 2"),
    ("stored", "lanes added from the near end", TILES,
     "for (int lanes = kNormLanes / 2; lanes > 0; lanes /= 2)", "for (int lanes = 1; lanes < kNormLanes; lanes *= 2)"),
    ("stored", "the gradient not scaled", TILES, "double g = scale * shared", "double g = shared"),
    # Sums of rows and columns.
    ("sums", "lanes added across others", SUM, "sum[0] + sum[2]) + (sum[1] + sum[3]", "sum[0] + sum[1]) + (sum[2] + sum[3]"),
    ("sums", "half of the threads' columns", SUM, "from < 32; from += kOwners", "from < 16; from += kOwners"),
    ("sums", "columns from right to left", SUM, "from + static_cast", "28 - from + static_cast"),
    ("sums", "no mask on numbers", SUM, "i < valid ? ", "true ? "),
    ("sums", "both sums the first", ROWS, "sums[k].add(of[k]", "sums[k].add(of[0]"),
    ("sums", "the sums of the row above", ROWS, "std::int64_t{row} * kSums", "(std::int64_t{row} - (row > 0)) * kSums"),
    ("sums", "every column with the first number of a row's columns", ROW, "{0, at.col, at.valid}", "{0, 0, at.valid}"),
    ("sums", "the row's number for its first column alone", ROW, "x[i][c] = x[i][0];", "x[i][c] = x[i][c];"),
    ("sums", "pieces added to the row as they come", LINES, "    total += part;", "    total = row % 2 ? total + part : part;"),
    ("sums", "a row in one piece", LINES, "      part += sum.total();", "      part = sum.total();"),
    ("sums", "columns from the second row on", LINES, "for (int row = 0; row < arguments.rows; ++row) {", "for (int row = 1; row < arguments.rows; ++row) {"),
    ("sums", "all rows' first sum", LINES, "row * arguments.count + k", "row * arguments.count"),
    # Hopper: the ring of stages.
    ("hopper", "loads begin with the other parity", HOPPER, "empty + step % kStages, parity(step) ^ 1", "empty + step % kStages, parity(step)"),
    ("hopper", "each tile begins with the first stage", HOPPER, "multiply(ring, turn * tiles.steps,", "multiply(ring, 0,"),
    ("hopper", "half of a stage announced", HOPPER, "expect_tx(full, kStageBytes)", "expect_tx(full, kStageBytes / 2)"),
    ("hopper", "barriers used before they are there", HOPPER, "ring.init();\n  __syncthreads();", "ring.init();"),
    ("hopper", "barriers that TMA does not know", HOPPER, "    mbarrier_init_fence();\n", ""),
    ("hopper", "a stage released that is multiplied", HOPPER, "      wgmma_wait<1>();\n", ""),
    ("hopper", "the last stage released too early", HOPPER, "    wgmma_wait<0>();\n" + LAST, LAST + "    wgmma_wait<0>();\n"),
    ("hopper", "the last stage kept", HOPPER, LAST, ""),
    ("hopper", "a stage released by one warp", HOPPER, "mbarrier_init(empty + i, kGroupWarps)", "mbarrier_init(empty + i, 1)"),
    # Hopper: operands and products.
    ("hopper", "the same tokens of X in every stage", HOPPER, "col + box * kBox, k * kStageTokens", "col + box * kBox, 0"),
    ("hopper", "another swizzle", HOPPER, "std::uint64_t{1} << 62", "std::uint64_t{2} << 62"),
    ("hopper", "distances of tokens and boxes exchanged", HOPPER, "kEightTokens << 32 | kNextBox << 16", "kEightTokens << 16 | kNextBox << 32"),
    ("hopper", "both halves from the first box", HOPPER, "dY + box * kBoxBytes / 16 + from", "dY + from"),
    ("hopper", "only the last product of a tile's first stage", HOPPER, "k + token > 0", "k > 0"),
    ("hopper", "no fence before products", HOPPER, "    wgmma_fence();\n", ""),
    ("hopper", "products never committed", HOPPER, "    wgmma_commit();\n", ""),
    ("hopper", "fragments read before they are there", HOPPER, "wgmma_wait<0>", "wgmma_wait<1>"),
    # Hopper: turns, tiles, fragments, strips.
    ("hopper", "the other's turn before one's own products", HOPPER, MULTIPLY + TURN, TURN + MULTIPLY),
    ("hopper", "nobody begins", HOPPER, "if (group == 1) barrier_arrive", "if (group == 2) barrier_arrive"),
    ("hopper", "a group of tiles as high as others", HOPPER, "within % height", "within % kGroup"),
    ("hopper", "halves of fragments exchanged", HOPPER, FOUR, "g[4 * i + 2 - 2 * half], g[4 * i + 3 - 2 * half]"),
    ("hopper", "fours read where they are not", HOPPER, "four_place(r + ahead, lane)", "four_place((r + ahead) % 2, lane)"),
    ("hopper", "rows of another warp", HOPPER, "n / 16 * 64 + warp * 16", "n / 16 * 16 + warp * 32"),
    ("hopper", "a row ahead of its place", HOPPER, "row_of_warp(n + kRowsAhead)", "row_of_warp(n + 1)"),
    ("hopper", "a strip written that is still read", HOPPER, "    __syncwarp();  // everyone has left the rows before\n", ""),
    ("hopper", "a strip read before it is written", HOPPER, "    __syncwarp();\n    FORGE_NO_UNROLL", "    FORGE_NO_UNROLL"),
    ("hopper", "both groups have the same strips", HOPPER, "(threadIdx.x / 32) - kGroupWarps", "(threadIdx.x / 32) % kGroupWarps"),
    # Storage and noise.
    ("stored", "no mask on rows", STORED, "row < rows ? cols - col : 0", "cols - col"),
    ("rows", "fours taken where there are none", STORED, "layout.rest_bytes)};", "layout.rest_bytes) || true};"),
    ("rows", "a block's scale of three threads", COLUMNS, "lanes = kBlockThreads / 2;", "lanes = kBlockThreads / 4;"),
    ("rows", "a scale stored by the wrong thread", STORED, "col % kBlockColumns == 0", "col % kBlockColumns == 4"),
    ("rows", "noise of the shard's own columns", STORED, "std::int64_t column = noise.col + at.col", "std::int64_t column = at.col"),
    ("rows", "noise of the other half of a group", STORED, "upper = column % 8 != 0", "upper = column % 8 == 0"),
    ("rows", "noise between groups not moved", STORED, "if (column & 4) w0", "if (column & 2) w0"),
    ("rows", "moments with the weight's noise", ROW, "place.use, weight.cols", "0, weight.cols"),
    ("rows", "both moments with the same byte", ROW, "x, noise, place.byte", "x, noise, 0"),
    ("rows", "halves of a word exchanged", COLUMNS, "word(p, i / 2) >> (16 * (i % 2))", "word(p, i / 2) >> (16 - 16 * (i % 2))"),
    ("rows", "a weight updated as the one before it", ROWS, "while (which + 1 < arguments.count", "while (which + 2 < arguments.count"),
    ("rows", "segments of a row from another length", ROWS, "(one.weight.cols - 1) / kWarpColumns + 1", "one.weight.cols / kWarpColumns + 1"),
    ("rows", "half precision read as bf16", NUMBERS, "m.dtype == DType::bf16 ?", "m.dtype != DType::f32 ?"),
]


def compile_to(built, source, *flags):
    compiler = ["ccache", "g++"] if shutil.which("ccache") else ["g++"]
    subprocess.run([*compiler, *flags, f"-I{ROOT}", "-x", "c++", "-c", source, "-o", built], check=True, cwd=ROOT)


class Workshop:
    """The objects of kernels that are right, and the way to put one that is wrong in its place."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "prefix.h").write_text("".join(f'#include "{name}"\n' for name in [*PREFIX, "tests/emulator/twins.h"]))
        header = ["g++", *EMULATED, f"-I{ROOT}", "-x", "c++-header", folder / "prefix.h", "-o", folder / "prefix.h.gch"]
        subprocess.run(header, check=True, cwd=ROOT)
        self.with_prefix = [*EMULATED, "-include", str(folder / "prefix.h")]
        first, *others = [f"tests/emulator/{name}.cpp" for name in MACHINE]  # in one go: headers are what is long
        compile_to(folder / "machine.o", first, *FLAGS, *(flag for name in others for flag in ("-include", name)))
        for name in [*OBJECTS, "main"]:
            compile_to(folder / f"{name}.o", f"tests/emulator/mutants/{name}.cpp", *self.with_prefix)
        compile_to(folder / "arguments.o", KERNELS / ARGUMENTS, *EMULATED)

    def run(self, part, replaced=None, built=None):
        """The exit code of the program, one object replaced; a crash or no end counts as noticed."""
        names = [name for name in ["machine", *OBJECTS, "main", "arguments"] if name != replaced]
        # First: of an inline function that several objects have, the linker keeps the first.
        objects = ([built] if built else []) + [self.folder / f"{name}.o" for name in names]
        program = self.folder / "program"
        libraries = [CORE, "-lhwy", "-lgtest", "-lpthread"]
        subprocess.run(["g++", *objects, *libraries, "-o", program], check=True)
        try:
            return subprocess.run([program, part], capture_output=True, timeout=60).returncode
        except subprocess.TimeoutExpired:
            return -1

    def run_mutant(self, part, file, old, new):
        tree = self.folder / "mutated"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(ROOT / KERNELS, tree / KERNELS)
        text = (tree / KERNELS / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has this {text.count(old)} times: {old}"
        (tree / KERNELS / file).write_text(text.replace(old, new), encoding="utf-8")
        built = self.folder / "mutant.o"
        if file == ARGUMENTS:
            replaced, source = "arguments", tree / KERNELS / file
        else:
            replaced = RUNS.get(part, part)
            source = f"tests/emulator/mutants/{replaced}.cpp"
        compile_to(built, source, *self.with_prefix, f"-I{tree}")
        return self.run(part, replaced, built)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    if not CORE.exists():
        pytest.skip(f"{CORE} is not built: make build")
    return Workshop(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("part", PARTS)
def test_what_is_right_passes(workshop, part):
    assert workshop.run(part) == 0


@pytest.mark.parametrize(("part", "what", "file", "old", "new"), MUTANTS, ids=[f"{m[0]}: {m[1]}" for m in MUTANTS])
def test_a_mutant_is_noticed(workshop, part, what, file, old, new):
    assert workshop.run_mutant(part, file, old, new) != 0
