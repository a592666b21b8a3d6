#include "forge/torch/saved_input.h"

#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <vector>

namespace forge {
namespace {

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

WeakStorage weak_storage(const at::Tensor& t) {
  return WeakStorage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(t.storage().unsafeGetStorageImpl()));
}

bool is_of(const WeakStorage& storage, const at::Tensor& t) {
  return storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl();
}

// Inputs of forward passes that ran inside of a backward pass of this thread, as long as they live.
thread_local std::vector<WeakStorage> recomputed;

void note_recomputed(const at::Tensor& x) {
  std::erase_if(recomputed, [](const WeakStorage& storage) { return storage.expired(); });
  recomputed.push_back(weak_storage(x));
}

bool is_recomputed(const at::Tensor& t) {
  return std::ranges::any_of(recomputed, [&](const WeakStorage& storage) { return is_of(storage, t); });
}

}  // namespace

SavedInput::SavedInput(const at::Tensor& x) : storage_(weak_storage(x)), users_own_(x.is_leaf()) {
  if (torch::autograd::get_current_graph_task_id() != -1) note_recomputed(x);
}

bool SavedInput::may_change(const at::Tensor& unpacked) const {
  return users_own_ || (!is_of(storage_, unpacked) && !is_recomputed(unpacked));
}

}  // namespace forge
