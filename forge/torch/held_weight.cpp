#include "forge/torch/held_weight.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <typeindex>

#include "forge/torch/matrix_view.h"

namespace forge {
namespace {

using torch::autograd::AccumulateGrad;
using torch::autograd::Node;

// Classes of nodes, asked for by example: their header is generated and large.
struct KnownNodes {
  std::type_index cast, transpose, swap, permute;

  static const KnownNodes& get() {
    static const KnownNodes known = [] {
      // No mode of the user's sees these operations.
      c10::impl::ForceDispatchKeyGuard no_modes(c10::default_included_set, c10::default_excluded_set);
      at::AutoGradMode grad_mode(true);
      at::Tensor leaf = at::empty({1, 1}).requires_grad_();
      auto of = [](const at::Tensor& t) { return std::type_index(typeid(*t.grad_fn())); };
      return KnownNodes{of(leaf.to(at::kBFloat16)), of(leaf.t()), of(leaf.transpose(0, 1)), of(leaf.permute({1, 0}))};
    }();
    return known;
  }
};

// What was done to a leaf on the way to `weight`. Whether a swap of axes transposes, its node does not show; a view of
// the leaf's own memory does.
struct Way {
  bool transposed = false, by_strides = false;

  bool take(const Node& node, const KnownNodes& known) {
    std::type_index type(typeid(node));
    transposed ^= type == known.transpose;
    by_strides |= type == known.swap || type == known.permute;
    return type == known.cast || type == known.transpose || type == known.swap || type == known.permute;
  }
  bool end(const at::Tensor& weight, const at::Tensor& leaf) {
    if (leaf.dim() != 2 || weight.dim() != 2) return false;
    if (!by_strides) return true;
    transposed = weight.stride(0) == leaf.stride(1) && weight.stride(1) == leaf.stride(0);
    return weight.is_alias_of(leaf) && weight.storage_offset() == leaf.storage_offset() &&
           (transposed ? weight.size(0) == leaf.size(1) : weight.sizes() == leaf.sizes() && weight.is_contiguous());
  }
};

}  // namespace

bool is_plain(const at::Tensor& t) {
  constexpr c10::DispatchKeySet kOther(
      {c10::DispatchKey::Python, c10::DispatchKey::Conjugate, c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor,
       c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return t.layout() == at::kStrided && !t.key_set().has_any(kOther) && !t.is_nested() && has_memory(t) &&
         is_operand(t.scalar_type()) && !t._fw_grad(0).defined();
}

HeldWeight find_held(const at::Tensor& weight) {
  if (!any_record() || weight.dim() != 2 || !weight.requires_grad()) return {};
  if (weight.is_leaf()) return {record_for_use(weight), weight, weight, false};
  const KnownNodes& known = KnownNodes::get();
  Way way;
  for (const Node* node = weight.grad_fn().get(); node != nullptr; node = node->next_edge(0).function.get()) {
    if (typeid(*node) == typeid(AccumulateGrad)) {
      const auto* end = static_cast<const AccumulateGrad*>(node);
      if (!is_plain(weight) || !way.end(weight, end->variable)) return {};
      return {record_for_use(end->variable), weight, weight, way.transposed};
    }
    if (!way.take(*node, known)) return {};
  }
  return {};
}

bool is_watched_on_its_way(const NodePointer& made_by) {
  const auto* tasks = torch::autograd::get_current_graph_task_exec_info();
  for (Node* node = made_by.get(); node != nullptr; node = node->next_edge(0).function.get()) {
    if (typeid(*node) == typeid(AccumulateGrad)) return false;
    if (!node->tensor_pre_hooks().empty() || !node->retains_grad_hooks().empty() || !node->pre_hooks().empty() ||
        !node->post_hooks().empty())
      return true;
    auto found = tasks ? tasks->find(node) : decltype(tasks->end()){};
    if (tasks && found != tasks->end() && found->second.captures_) return true;
  }
  return false;
}

}  // namespace forge
