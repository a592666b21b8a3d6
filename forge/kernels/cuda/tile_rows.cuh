#pragma once

#include "forge/kernels/cuda/row_operation.cuh"
#include "forge/kernels/cuda/tile.cuh"

// What becomes of the rows of a tile, whoever makes it. A thread has four columns; rows are counted in the tile. All
// lanes of a warp take a row together.
namespace forge::cuda {

// W, S ← Rule(W, S, scale · g).
template <class Operation>
class RowUpdate {
 public:
  struct Arguments {
    typename Operation::Arguments weight;
    typename Operation::Step step;
  };

  FORGE_DEVICE RowUpdate(const Arguments& arguments, const OnDevice& numbers, float scale, int row0, int col)
      : weight_(arguments.weight),
        step_(step_of(numbers, arguments.step)),
        scale_(scale_of(numbers, scale)),
        row0_(row0),
        col_(col) {}

  FORGE_DEVICE bool has(int row) const { return row < kTile && row0_ + row < weight_.rows; }
  // What `take` wants of W and S; of a row that is not there, nothing.
  FORGE_DEVICE auto load(int row) const { return Operation::load(weight_, spot(row)); }
  FORGE_DEVICE void take(int row, const typename Operation::Loaded& loaded, const float* four) const {
    float4 all = *reinterpret_cast<const float4*>(four);
    const float g[kThreadColumns] = {all.x, all.y, all.z, all.w};
    Operation::update(weight_, step_, spot(row), loaded, g, scale_);
  }

 private:
  FORGE_DEVICE Spot spot(int row) const {
    Spot at = weight_.spot(row0_ + row, col_);
    if (row >= kTile) at.valid = 0;
    return at;
  }

  const typename Operation::Arguments& weight_;
  const typename Operation::Step step_;
  const float scale_;
  const int row0_, col_;
};

// D ← scale · g, in the two formats of a gradient, fp32 and bf16; both round to nearest.
class RowStore {
 public:
  using Arguments = WeightArguments<1>;
  struct Loaded {};

  FORGE_DEVICE RowStore(const Arguments& D, const OnDevice& numbers, float scale, int row0, int col)
      : D_(D), scale_(scale_of(numbers, scale)), row0_(row0), col_(col) {}

  FORGE_DEVICE bool has(int row) const { return row < kTile; }  // of rows that are not there nothing is stored
  FORGE_DEVICE Loaded load(int) const { return {}; }
  FORGE_DEVICE void take(int row, Loaded, const float* four) const {
    const StoredArguments& D = D_.matrices[0];
    const Spot at = D_.spot(row0_ + row, col_);
    float x[kThreadColumns];
    Columns::each([&](int i) { x[i] = scale_ * four[i]; });
    if (D.format == Format::fp32)
      store_raw<Fixed<Format::fp32>>(D, at, encode<Fixed<Format::fp32>, Sign::any>(D, x));
    else
      store_raw<Fixed<Format::bf16>>(D, at, encode<Fixed<Format::bf16>, Sign::any>(D, x));
  }

 private:
  const Arguments& D_;
  const float scale_;
  const int row0_, col_;
};

}  // namespace forge::cuda
