#include "forge/torch/saved_input.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <cstdint>
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

at::Tensor whole(const at::Tensor& t) { return t.is_view() ? at::Tensor(t._base()) : t; }

// An input of a forward pass that ran inside of a backward pass of this thread, as long as it lives, and the number of
// the node that computed it. What was saved before and unpacked has the node of the first forward pass.
struct Recomputed {
  WeakStorage storage;
  std::uint64_t made_by;
};
thread_local std::vector<Recomputed> recomputed;

void note_recomputed(const at::Tensor& x) {
  // What was there before in a buffer is there no more.
  std::erase_if(recomputed, [&](const Recomputed& r) { return r.storage.expired() || is_of(r.storage, x); });
  if (auto node = whole(x).grad_fn()) recomputed.push_back({weak_storage(x), node->sequence_nr()});
}

bool is_recomputed(const at::Tensor& t, std::uint64_t since) {
  return std::ranges::any_of(recomputed,
                             [&](const Recomputed& r) { return r.made_by >= since && is_of(r.storage, t); });
}

// The slot's question has another name in older versions of torch.
template <class Slot>
bool has_object(const Slot* slot) {
  if constexpr (requires { slot->load_pyobj(); })
    return slot->load_pyobj() != nullptr;
  else
    return slot->_unchecked_untagged_pyobj() != nullptr;
}

}  // namespace

SavedInput::SavedInput(const at::Tensor& x)
    : storage_(weak_storage(x)), users_own_(whole(x).is_leaf()), saved_at_(at::sequence_number::peek()) {
  if (torch::autograd::get_current_graph_task_id() != -1) note_recomputed(x);
}

bool SavedInput::may_change(const at::Tensor& unpacked) const {
  return users_own_ || (!is_of(storage_, unpacked) && !is_recomputed(unpacked, saved_at_));
}

bool is_known_elsewhere(const at::Tensor& t) {
  auto known = [](const at::Tensor& of) { return has_object(of.unsafeGetTensorImpl()->pyobj_slot()); };
  return known(t) || known(whole(t));
}

}  // namespace forge
