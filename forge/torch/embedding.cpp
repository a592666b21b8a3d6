#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "forge/torch/capsule.h"
#include "forge/torch/dispatch.h"
#include "forge/torch/held_weight.h"
#include "forge/torch/record.h"
#include "forge/torch/saved_input.h"

namespace forge {
namespace {

using torch::autograd::AutogradContext;

struct EmbeddingUse {
  std::weak_ptr<Record> record;
  std::int64_t padding_idx, rows;
  bool sparse;
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& index,
                            const EmbeddingUse& use) {
    ctx->save_for_backward({index});
    keep_use<EmbeddingUse>(ctx, use);
    at::AutoDispatchBelowADInplaceOrView guard;
    return at::embedding(weight, index, use.padding_idx, /*scale_grad_by_freq=*/false, use.sparse);
  }

  static std::vector<at::Tensor> backward(AutogradContext* ctx, const std::vector<at::Tensor>& grads) {
    at::Tensor dW;
    if (ctx->needs_input_grad(0))
      dW = weight_gradient(kept_use<EmbeddingUse>(ctx), grads[0], ctx->get_saved_variables()[0]);
    return {dW, at::Tensor(), at::Tensor()};
  }

  static at::Tensor weight_gradient(const EmbeddingUse& use, const at::Tensor& dY, const at::Tensor& index) {
    expect_second_derivative(use);
    auto record = at::GradMode::is_enabled() ? nullptr : use.record.lock();
    auto rows = [&](const at::Tensor& t) { return t.detach().reshape({index.numel(), t.size(-1)}); };
    auto flat = [&] { return index.detach().reshape({index.numel()}).to(at::kLong); };
    if (record && record->record_rows(flat(), {rows(dY), is_known_elsewhere(dY)}, use.padding_idx)) return {};
    return at::embedding_backward(dY, index, use.rows, use.padding_idx, /*scale_grad_by_freq=*/false, use.sparse);
  }
};

// torch's own autograd kernel. It is registered for every device under one alias, which a kernel of one device stands
// before; under AutogradOther, which no device has, it is still found.
at::Tensor embedding_of_torch(c10::DispatchKeySet keys, const at::Tensor& weight, const at::Tensor& index,
                              c10::SymInt padding_idx, bool scale_grad_by_freq, bool sparse) {
  constexpr c10::DispatchKeySet kAlias(c10::DispatchKey::AutogradOther);
  return at::_ops::embedding::redispatch(kAlias | (keys & c10::after_autograd_keyset), weight, index,
                                         std::move(padding_idx), scale_grad_by_freq, sparse);
}

bool is_index(const at::Tensor& t) {
  return t.layout() == at::kStrided && !t.key_set().has(c10::DispatchKey::Python) &&
         (t.scalar_type() == at::kLong || t.scalar_type() == at::kInt);
}

at::Tensor embedding_of_held(c10::DispatchKeySet keys, const at::Tensor& weight, const at::Tensor& index,
                             c10::SymInt padding_idx, bool scale_grad_by_freq, bool sparse) {
  auto record = weight.is_leaf() ? record_for_use(weight) : nullptr;
  if (record && scale_grad_by_freq) {
    record->expect_ordinary("an embedding with scale_grad_by_freq");
    record = nullptr;
  }
  auto padding = padding_idx.maybe_as_int();
  if (!record || !padding || !is_index(index) || index.device() != weight.device())
    return embedding_of_torch(keys, weight, index, std::move(padding_idx), scale_grad_by_freq, sparse);
  return Embedding::apply(weight, index, EmbeddingUse{record, *padding, weight.size(0), sparse});
}

}  // namespace

void put_before_embedding(torch::Library& m) { m.impl("embedding", &embedding_of_held); }

}  // namespace forge
