#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>

// Zeroed memory on huge pages where the system allows it: otherwise page faults and TLB misses would be measured too.
struct FreePages {
  void operator()(void* p) const { std::free(p); }
};
using Pages = std::unique_ptr<void, FreePages>;

inline Pages huge_pages(std::size_t bytes) {
  constexpr std::size_t kPage = 2 << 20;
  std::size_t rounded = (bytes / kPage + 1) * kPage;
  Pages pages(std::aligned_alloc(kPage, rounded));
  madvise(pages.get(), rounded, MADV_HUGEPAGE);
  std::fill_n(static_cast<std::byte*>(pages.get()), rounded, std::byte{0});
  return pages;
}
