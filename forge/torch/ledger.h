#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <unordered_map>

namespace forge {

// A number of bytes and its highest value.
class Bytes {
 public:
  std::int64_t now() const { return now_; }
  std::int64_t peak() const { return peak_; }
  void add(std::int64_t bytes) { peak_ = std::max(peak_, now_ += bytes); }
  void reset_peak() { peak_ = now_; }

 private:
  std::int64_t now_ = 0, peak_ = 0;
};

// Bytes of the storages that tensors keep alive, each storage counted once however many tensors share it.
class HeldBytes {
 public:
  void hold(const at::Tensor& t) {
    if (uses_[t.storage().unsafeGetStorageImpl()]++ == 0) bytes_.add(size(t));
  }
  void release(const at::Tensor& t) {
    auto found = uses_.find(t.storage().unsafeGetStorageImpl());
    if (--found->second > 0) return;
    uses_.erase(found);
    bytes_.add(-size(t));
  }
  Bytes& bytes() { return bytes_; }
  const Bytes& bytes() const { return bytes_; }

 private:
  static std::int64_t size(const at::Tensor& t) { return static_cast<std::int64_t>(t.storage().nbytes()); }

  std::unordered_map<const c10::StorageImpl*, std::int64_t> uses_;
  Bytes bytes_;
};

// What the gradients of one optimizer keep alive.
struct Ledger {
  HeldBytes terms;       // dY, X, index and values
  Bytes dense_matrices;  // dense gradients of 2-D parameters
  Bytes dense_vectors;   // of the rest

  Bytes& dense(bool is_matrix) { return is_matrix ? dense_matrices : dense_vectors; }
};

}  // namespace forge
