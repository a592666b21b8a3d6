#pragma once

#include "forge/base/inline.h"
#include "forge/rules/uncorrected_adamw.h"

namespace forge {

// The sign of the gradient with the size of Adam's step (Cao, Li & Song, arXiv 2412.17107), as the authors' class
// defines it (Gunale0926/Grams): the direction is sign(g) |m|.
struct GramsOptions {
  static constexpr const char* kName = "Grams";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0;
  bool correct_bias = true;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"correct_bias"}, o.correct_bias);
  }
};

namespace rules {

struct Grams : UncorrectedAdamW<Grams, GramsOptions> {
  static constexpr const char* kName = "grams";

  template <class V>
  FORGE_INLINE static V direction(V g, V m) {
    return sign_of(g) * abs(m);
  }
};

}  // namespace rules
}  // namespace forge
