#pragma once

namespace forge {

// The order of ‖G‖²'s sum, the same on every target. Column c of a row belongs to lane c mod 16; a lane adds its
// squares from left to right in fp64 (an fp32 squared is exact there); a row's lanes are added as a tree; rows are
// added from top to bottom. 16: two AVX-512 registers of doubles, and no wider target is known.
constexpr int kNormLanes = 16;

inline double reduce_norm_lanes(const double* lane) {
  double sum[kNormLanes];
  for (int i = 0; i < kNormLanes; ++i) sum[i] = lane[i];
  for (int half = kNormLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

}  // namespace forge
