#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "forge/torch/gram.h"

namespace forge {

class Gradient;

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

// What the gradients of one optimizer keep alive, and what became of them.
//
// Two locks, since backward passes of several threads may share weights. `gradients_in_use` is held while gradients
// with this ledger are read or changed; who holds it may ask Python (for a handle), so nobody waits for it with the
// interpreter's lock in hand. The books below have a lock of their own, under which nothing is asked of anybody: a
// gradient may end in any thread, also in one that has the interpreter's lock.
class Ledger {
 public:
  std::recursive_mutex gradients_in_use;
  // Read and written by who holds gradients_in_use: how often terms were multiplied out, by reason.
  std::map<std::string, std::int64_t> collapses;
  // Likewise: of the last norm, empty where a term of any gradient has changed since.
  GramCache& gram() {
    if (std::uint64_t now = changes_; gram_changes_ != now) {
      gram_ = {};
      gram_changes_ = now;
    }
    return gram_;
  }

  std::atomic<bool> has_ordinary = false;  // a matrix has had an ordinary gradient

  // What is in the books at one moment.
  struct Figures {
    Bytes terms;           // dY, X, index and values
    Bytes dense_matrices;  // dense gradients of 2-D parameters
    Bytes dense_vectors;   // of the rest
    Bytes gradients;       // all three together, for their highest value at one moment
    std::int64_t skipped_steps = 0;
  };

  void add_dense(bool is_matrix, std::int64_t bytes) {
    std::scoped_lock lock(books_);
    (is_matrix ? figures_.dense_matrices : figures_.dense_vectors).add(bytes);
    figures_.gradients.add(bytes);
  }
  void hold(const at::Tensor& t) {
    count([&] { terms_.hold(t); });
  }
  void release(const at::Tensor& t) {
    count([&] { terms_.release(t); });
  }
  Figures figures() const {
    std::scoped_lock lock(books_);
    Figures all = figures_;
    all.terms = terms_.bytes();
    return all;
  }
  void reset_peaks() {
    std::scoped_lock lock(books_);
    terms_.bytes().reset_peak();
    for (Bytes* bytes : {&figures_.dense_matrices, &figures_.dense_vectors, &figures_.gradients}) bytes->reset_peak();
  }
  // The gradients that are alive, in the order in which they were made.
  void enter(const std::shared_ptr<Gradient>& G) {
    std::scoped_lock lock(books_);
    alive_.push_back(G);
    if (alive_.size() < 2 * alive_then_ + 16) return;
    std::erase_if(alive_, [](const auto& weak) { return weak.expired(); });
    alive_then_ = alive_.size();
  }
  std::vector<std::shared_ptr<Gradient>> alive() const {
    std::vector<std::shared_ptr<Gradient>> all;
    std::scoped_lock lock(books_);
    for (const auto& weak : alive_)
      if (auto G = weak.lock()) all.push_back(std::move(G));
    return all;
  }

  // The first gradient that was found not to be finite since the last step; one that is dropped before the next counts
  // as a skipped step.
  void note_not_finite(const Gradient* G) {
    std::scoped_lock lock(books_);
    if (!not_finite_) not_finite_ = G;
  }
  void note_dropped(const Gradient* G) {
    std::scoped_lock lock(books_);
    if (not_finite_ != G) return;
    not_finite_ = nullptr;
    ++figures_.skipped_steps;
  }
  bool is_not_finite(const Gradient* G) const {
    std::scoped_lock lock(books_);
    return G != nullptr && not_finite_ == G;
  }
  void note_step() {
    std::scoped_lock lock(books_);
    not_finite_ = nullptr;
  }

 private:
  template <class F>
  void count(F&& change) {
    std::scoped_lock lock(books_);
    std::int64_t before = terms_.bytes().now();
    change();
    figures_.gradients.add(terms_.bytes().now() - before);
    ++changes_;
  }

  mutable std::mutex books_;
  HeldBytes terms_;
  Figures figures_;
  std::atomic<std::uint64_t> changes_ = 0;  // of terms
  GramCache gram_;
  std::uint64_t gram_changes_ = 0;
  std::vector<std::weak_ptr<Gradient>> alive_;  // and some that are not; looked through when they have doubled
  std::size_t alive_then_ = 0;
  const Gradient* not_finite_ = nullptr;
};

}  // namespace forge
