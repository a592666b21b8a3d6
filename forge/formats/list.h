#pragma once

#include "forge/formats/bf16.h"
#include "forge/formats/fp32.h"

namespace forge {

// The one list of storage formats: tables of kernels, names and tests derive from it.
template <class... Format>
struct FormatListOf {
  static constexpr int kSize = sizeof...(Format);
  static constexpr DType kDTypes[] = {Format::kDType...};
  // Calls f.template operator()<Format>() for each format, in order.
  template <class F>
  static void for_each(F&& f) {
    (f.template operator()<Format>(), ...);
  }
};

using FormatList = FormatListOf<formats::Fp32, formats::Bf16>;

}  // namespace forge
