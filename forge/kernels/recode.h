#pragma once

#include "forge/formats/format.h"
#include "forge/kernels/target.h"

namespace forge {

// to ← from, number by number, from one format into another, each rounded as `to` rounds. `sign` is that of the numbers
// in both. They may not overlap. Throws Error before anything is written where the shapes do not fit.
void recode(const Stored& to, const Stored& from, Sign sign, const Context& context);

}  // namespace forge
