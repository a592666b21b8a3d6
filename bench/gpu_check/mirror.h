#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bench/gpu_check/device_memory.h"
#include "forge/formats/format.h"
#include "forge/gradient/terms.h"

namespace forge::gpu_check {

// Matrices of the host in the device's memory, at addresses that are as much or as little aligned, with what lies
// between their rows; it lives as long as this.
class Mirror {
 public:
  Mirror() = default;
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;
  ~Mirror() {
    for (const Region& r : regions_) release(r.allocation);
  }

  Matrix matrix(const Matrix& m) { return {copy(m.data, bytes_of(m), true), m.dtype, m.rows, m.cols, m.stride}; }
  ConstMatrix matrix(const ConstMatrix& m) {
    return {copy(const_cast<void*>(m.data), bytes_of(m), false), m.dtype, m.rows, m.cols, m.stride};
  }
  Stored stored(const Stored& m) {
    return {m.format, matrix(m.values), info_of(m.format).has_rest ? matrix(m.rest) : Matrix{}, m.noise};
  }
  std::vector<Stored> stored(std::span<const Stored> all) {
    std::vector<Stored> copies;
    for (const Stored& m : all) copies.push_back(stored(m));
    return copies;
  }
  // `terms` holds what the result refers to.
  Expression expression(const Expression& G, std::vector<Term>& terms) {
    for (const Term& term : G.terms) {
      terms.push_back(term);
      Term& t = terms.back();
      if (auto* o = std::get_if<Outer>(&t)) o->dY = matrix(o->dY), o->X = matrix(o->X);
      if (auto* d = std::get_if<Dense>(&t)) d->D = matrix(d->D);
      if (auto* r = std::get_if<Rows>(&t)) {
        std::size_t bytes = static_cast<std::size_t>(r->values.rows) * sizeof(std::int64_t);
        r->index = static_cast<const std::int64_t*>(copy(const_cast<std::int64_t*>(r->index), bytes, false));
        r->values = matrix(r->values);
      }
    }
    return {G.out, G.in, terms, G.scale};
  }

  // What kernels may have written goes to the host's matrices.
  void copy_back() const {
    for (const Region& r : regions_)
      if (r.written && r.bytes > 0) copy_to_host(r.host, r.device, r.bytes);
  }

 private:
  static constexpr std::size_t kAlign = 256;
  struct Region {
    void *host, *device, *allocation;
    std::size_t bytes;
    bool written;
  };

  static std::size_t bytes_of(const ConstMatrix& m) {
    if (m.rows == 0 || m.cols == 0) return 0;
    return static_cast<std::size_t>((m.rows - 1) * m.stride + m.cols) * size_of(m.dtype);
  }
  void* copy(void* host, std::size_t bytes, bool written) {
    std::size_t offset = reinterpret_cast<std::uintptr_t>(host) % kAlign;
    void* allocation = allocate(bytes + 2 * kAlign);
    auto base = reinterpret_cast<std::uintptr_t>(allocation);
    auto* device = reinterpret_cast<void*>((base + kAlign - 1) / kAlign * kAlign + offset);
    if (bytes > 0) copy_to_device(device, host, bytes);
    regions_.push_back({host, device, allocation, bytes, written});
    return device;
  }

  std::vector<Region> regions_;
};

}  // namespace forge::gpu_check
