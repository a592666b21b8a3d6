#pragma once

#include <cstdint>

namespace forge {

// What values a moment takes. A format of few bits spends none of them on a sign that is not there.
enum class Sign : std::uint8_t { any, not_negative };

}  // namespace forge
