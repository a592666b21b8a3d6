#pragma once

#include <string>

#include "forge/formats/bf16.h"
#include "forge/formats/fp32.h"

namespace forge {

// The one list of storage formats: tables of kernels, names and tests derive from it.
template <class... Format>
struct FormatListOf {
  static constexpr int kSize = sizeof...(Format);
  static constexpr DType kDTypes[] = {Format::kDType...};
  static constexpr bool has(DType dtype) { return ((Format::kDType == dtype) || ...); }
  // "fp32 or bf16", for sentences.
  static std::string names() {
    std::string all;
    ((all += (all.empty() ? "" : " or ") + std::string(Format::kName)), ...);
    return all;
  }
  // Calls f.template operator()<Format>() for each format, in order.
  template <class F>
  static void for_each(F&& f) {
    (f.template operator()<Format>(), ...);
  }
};

using FormatList = FormatListOf<formats::Fp32, formats::Bf16>;

}  // namespace forge
