#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace forge {

// Tells of a tensor that a forward pass saved whether backward got the same memory back. Under saved-tensor hooks
// (offloading, compression) it gets what the hook hands out, which may be a buffer that the hook fills again.
class SavedInput {
 public:
  // x: what is saved. A recomputation (torch.utils.checkpoint) is seen to be one: a forward pass inside of a backward
  // pass. What it computed and saved is its own, though it comes through a hook; its input may be a hook's buffer.
  explicit SavedInput(const at::Tensor& x);
  // unpacked: what backward got. True where somebody else may write to it before step(): the user's own tensor, or one
  // that a hook handed out.
  bool may_change(const at::Tensor& unpacked) const;

 private:
  // Weak: another storage cannot have its address while this is here.
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  bool users_own_;
  std::uint64_t saved_at_;  // as nodes are numbered: one made later has a number not below it
};

// True where users of another language (Python) have had this tensor in hand, or the one that it is a view of: a hook
// or a function of theirs may have returned a buffer that it fills again.
bool is_known_elsewhere(const at::Tensor& t);

}  // namespace forge
