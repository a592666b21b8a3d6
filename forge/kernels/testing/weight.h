#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

#include "forge/formats/list.h"
#include "forge/kernels/testing/buffer.h"
#include "forge/kernels/testing/gradients.h"
#include "forge/rules/list.h"

namespace forge::testing {

// How a weight and its moments are stored.
struct Storage {
  Format weight = Format::fp32, state = Format::fp32;
};
inline std::ostream& operator<<(std::ostream& to, const Storage& s) {
  return to << "W " << name_of(s.weight) << ", S " << name_of(s.state);
}

// All pairs of formats.
inline const std::vector<Storage>& storages() {
  static const std::vector<Storage> all = [] {
    std::vector<Storage> pairs;
    for (int w = 0; w < kFormatCount; ++w)
      for (int s = 0; s < kFormatCount; ++s)
        if (kFormats[w].for_weights && kFormats[s].for_moments) pairs.push_back({Format(w), Format(s)});
    return pairs;
  }();
  return all;
}

// A weight with the moments of a rule. The numbers come from next(); where a moment is not negative, their magnitudes.
struct Weight {
  StoredBuffer W;
  std::vector<StoredBuffer> S;

  template <class Next>
  Weight(Shape shape, Storage storage, const RuleInfo& rule, Next&& next) : W(shape.out, shape.in, storage.weight) {
    W.fill(next);
    for (const Moment& moment : rule.moments) {
      Format format = moment.extent == Extent::element ? storage.state : Format::fp32;
      S.emplace_back(moment.rows(shape.out), moment.cols(shape.in), format, moment.sign, 2 + std::ssize(S)).fill([&] {
        float x = next();
        return moment.sign == Sign::any ? x : std::abs(x);
      });
    }
  }

  std::vector<Stored> moments() {
    std::vector<Stored> views;
    for (StoredBuffer& s : S) views.push_back(s.view());
    return views;
  }
  bool canaries_live() const {
    return W.canaries_live() && std::all_of(S.begin(), S.end(), [](const auto& s) { return s.canaries_live(); });
  }
};

}  // namespace forge::testing
