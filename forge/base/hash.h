#pragma once

#include <cstdint>
#include <string_view>

namespace forge {

// FNV-1a, 32 bits.
constexpr std::uint32_t fnv1a(std::string_view text) {
  std::uint32_t hash = 0x811C9DC5;
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x01000193u;
  return hash;
}

}  // namespace forge
