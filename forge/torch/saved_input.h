#pragma once

#include <ATen/core/Tensor.h>

namespace forge {

// Tells of a tensor that a forward pass saved whether backward got the same memory back. Under saved-tensor hooks
// (offloading, compression) it gets what the hook hands out, which may be a buffer that the hook fills again.
class SavedInput {
 public:
  // x: what is saved. A recomputation (torch.utils.checkpoint) is seen to be one: a forward pass inside of a backward
  // pass. What it saved is its own, though it comes through a hook.
  explicit SavedInput(const at::Tensor& x);
  // unpacked: what backward got. True where somebody else may write to it before step(): the user's own tensor, or one
  // that a hook handed out.
  bool may_change(const at::Tensor& unpacked) const;

 private:
  // Weak: another storage cannot have its address while this is here.
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  bool users_own_;
};

}  // namespace forge
