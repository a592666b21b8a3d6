#pragma once

#include <cstdint>

#include "forge/kernels/cuda/ptx/mma.cuh"
#include "forge/kernels/cuda/tile.cuh"

// A tile of G on tensor cores, from operands of 16 bits as they are. The products are exact, the order and rounding of
// their sums are the hardware's, fixed by the number of tokens alone: fused and stored tiles have the same bits, those
// of fp32 multiply-adds are others. sm_80 and later.
namespace forge::cuda {

// A warp makes 64 × 32 elements, as 4 × 4 products of 16 × 8.
constexpr int kMmaRows = 16, kMmaCols = 8, kMmaTokens = 16;

struct MmaTile {
  static constexpr int kRowBlocks = 4, kColBlocks = 4;
  float g[kRowBlocks][kColBlocks][4];

  FORGE_DEVICE static int warp_row() { return static_cast<int>(threadIdx.x / 128) * kRowBlocks * kMmaRows; }
  FORGE_DEVICE static int warp_col() { return static_cast<int>(threadIdx.x / 32 % 4) * kColBlocks * kMmaCols; }
  // Of element v of product (i, j), in the tile.
  FORGE_DEVICE static int row(int i, int v) {
    return warp_row() + i * kMmaRows + static_cast<int>(threadIdx.x % 32 / 4) + v / 2 * 8;
  }
  FORGE_DEVICE static int col(int j, int v) {
    return warp_col() + j * kMmaCols + static_cast<int>(threadIdx.x % 4) * 2 + v % 2;
  }
  template <class F>
  FORGE_DEVICE static void each_product(F&& f) {
    FORGE_UNROLL
    for (int i = 0; i < kRowBlocks; ++i) {
      FORGE_UNROLL
      for (int j = 0; j < kColBlocks; ++j) f(i, j);
    }
  }
  template <class F>
  FORGE_DEVICE void each(F&& f) {
    each_product([&](int i, int j) {
      FORGE_UNROLL
      for (int v = 0; v < 4; ++v) f(row(i, v), col(j, v), g[i][j][v]);
    });
  }
  FORGE_DEVICE void store(float* strip) const {
    each_product([&](int i, int j) {
      FORGE_UNROLL
      for (int v = 0; v < 4; v += 2)
        *reinterpret_cast<float2*>(strip + strip_place(row(i, v), col(j, v))) = make_float2(g[i][j][v], g[i][j][v + 1]);
    });
  }
};

// One operand of a product: columns [first, first + 128) of a matrix of tokens, a stage at a time, in pieces of 8
// columns. The pieces of a token are exchanged by its number, so that the eight rows of a matrix that ldmatrix reads
// lie in all banks.
struct HalfLoader {
  static constexpr int kTokens = 32;  // of a stage
  static constexpr int kPiece = 8, kPieces = kTile / kPiece;
  static constexpr int kHalves = kTokens * kTile;
  static_assert(2 * kHalves * sizeof(std::uint16_t) == kStageBytes);

  const OperandArguments& m;
  int first, cols, tokens;

  FORGE_DEVICE static std::uint16_t* place(std::uint16_t* stage, int token, int piece) {
    return stage + token * kTile + (piece ^ token % 8) * kPiece;
  }

  // Zeros where there is nothing of the matrix. What does not come in 16 bytes goes through registers.
  FORGE_DEVICE void load(int from, std::uint16_t* stage) const {
    constexpr int kTokensAtOnce = kChainThreads / kPieces;
    const int piece = static_cast<int>(threadIdx.x % kPieces), col = first + piece * kPiece;
    FORGE_UNROLL
    for (int token = static_cast<int>(threadIdx.x / kPieces); token < kTokens; token += kTokensAtOnce) {
      int left = from + token < tokens ? cols - col : 0, valid = left < 0 ? 0 : left < kPiece ? left : kPiece;
      auto* to = place(stage, token, piece);
      const auto* source = static_cast<const std::uint16_t*>(m.data);
      if (valid > 0) source += (from + token) * m.stride + col;
      if (m.copied_halves) {
        cp_async_16(to, source, valid * static_cast<int>(sizeof(std::uint16_t)));
      } else {
        std::uint32_t words[4] = {};
        FORGE_UNROLL
        for (int i = 0; i < kPiece; ++i)
          if (i < valid) words[i / 2] |= static_cast<std::uint32_t>(source[i]) << (i % 2 * 16);
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
};

// Tokens [token, token + 16) of a stage.
template <bool kBf16>
FORGE_DEVICE void multiply_tokens(std::uint16_t* dY, std::uint16_t* X, int token, MmaTile& tile) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane % 8, upper = lane / 8 % 2, right = lane / 16;
  std::uint32_t a[MmaTile::kRowBlocks][4], b[MmaTile::kColBlocks / 2][4];
  // dYᵀ from tokens of dY: below is 8 columns of dY on, to the right 8 tokens.
  FORGE_UNROLL
  for (int i = 0; i < MmaTile::kRowBlocks; ++i)
    ldmatrix_x4_trans(a[i], HalfLoader::place(dY, token + row + 8 * right, MmaTile::warp_row() / 8 + 2 * i + upper));
  // Two products' columns of X at a time: below is 8 tokens on.
  FORGE_UNROLL
  for (int j = 0; j < MmaTile::kColBlocks / 2; ++j)
    ldmatrix_x4_trans(b[j], HalfLoader::place(X, token + row + 8 * upper, MmaTile::warp_col() / 8 + 2 * j + right));
  MmaTile::each_product([&](int i, int j) {
    if constexpr (kBf16)
      mma_bf16(tile.g[i][j], a[i], b[j / 2] + j % 2 * 2);
    else
      mma_fp16(tile.g[i][j], a[i], b[j / 2] + j % 2 * 2);
  });
}

template <bool kBf16>
FORGE_DEVICE void add_product(const ChainArguments& all, const TermArguments& term, int row, int col, float* shared,
                              MmaTile& tile) {
  constexpr int kTokens = HalfLoader::kTokens;
  HalfLoader dY = {term.first, row, all.out, term.tokens}, X = {term.second, col, all.in, term.tokens};
  auto stage_of = [&](int step) {
    return reinterpret_cast<std::uint16_t*>(shared) + step % kStages * (2 * HalfLoader::kHalves);
  };
  auto load = [&](int step) {
    dY.load(step * kTokens, stage_of(step));
    X.load(step * kTokens, stage_of(step) + HalfLoader::kHalves);
  };
  pipeline((term.tokens - 1 + kTokens) / kTokens, load, [&](int step) {
    FORGE_UNROLL
    for (int token = 0; token < kTokens; token += kMmaTokens)
      if (step * kTokens + token < term.tokens)
        multiply_tokens<kBf16>(stage_of(step), stage_of(step) + HalfLoader::kHalves, token, tile);
  });
}

// Tensor cores: terms as can_multiply_halves (chain.h) has them.
struct MmaChain {
  using Tile = MmaTile;

  // As FfmaChain::make.
  FORGE_DEVICE static void make(const ChainArguments& all, int row, int col, float* shared, Tile& tile) {
    tile.each([](int, int, float& g) { g = -0.f; });
    FORGE_NO_UNROLL
    for (int k = 0; k < all.terms; ++k) {
      const TermArguments& term = all.term[k];
      if (term.kind == TermKind::dense)
        add_dense(all, term, row, col, shared, tile);
      else if (term.first.dtype == DType::bf16)
        add_product<true>(all, term, row, col, shared, tile);
      else
        add_product<false>(all, term, row, col, shared, tile);
    }
  }
};

}  // namespace forge::cuda
