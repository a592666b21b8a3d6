#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "forge/base/error.h"
#include "forge/torch/capsule.h"
#include "forge/torch/functional.h"
#include "forge/torch/record.h"

namespace forge {
namespace {

using torch::autograd::AutogradContext;

struct EmbeddingUse {
  std::weak_ptr<Record> record;
  std::int64_t padding_idx, rows;
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& index,
                            std::int64_t padding_idx, const std::shared_ptr<Record>& record) {
    ctx->save_for_backward({index});
    keep_use<EmbeddingUse>(ctx, {record, padding_idx, weight.size(0)});
    at::AutoDispatchBelowADInplaceOrView guard;
    return at::embedding(weight, index, padding_idx);
  }

  static std::vector<at::Tensor> backward(AutogradContext* ctx, const std::vector<at::Tensor>& grads) {
    at::Tensor dW;
    if (ctx->needs_input_grad(0)) dW = weight_gradient(ctx, grads[0], ctx->get_saved_variables()[0]);
    return {dW, at::Tensor(), at::Tensor(), at::Tensor()};
  }

  static at::Tensor weight_gradient(AutogradContext* ctx, const at::Tensor& dY, const at::Tensor& index) {
    check(!at::GradMode::is_enabled(),
          "embedding.backward: create_graph through a weight that an optimizer holds is "
          "not supported; use torch's own embedding for what is differentiated twice");
    auto use = kept_use<EmbeddingUse>(ctx);
    auto record = use.record.lock();
    if (!record || record->wants_tensor())
      return at::embedding_dense_backward(dY, index, use.rows, use.padding_idx, false);
    record->record_rows(index.detach().reshape({index.numel()}), dY.detach().reshape({index.numel(), dY.size(-1)}),
                        use.padding_idx);
    return {};
  }
};

void check_index(const at::Tensor& index, const at::Tensor& weight) {
  check(weight.defined() && weight.dim() == 2, "embedding: the weight is ",
        weight.defined() ? weight.sizes() : at::IntArrayRef(), ", expected (n, d)");
  check(index.defined() && index.scalar_type() == at::kLong, "embedding: the index must be an int64 or int32 tensor");
  check(index.device() == weight.device(), "embedding: the index is on ", index.device().str(), " and the weight on ",
        weight.device().str());
  // On another device torch's kernel looks, and the host need not wait for it.
  if (index.numel() == 0 || !index.is_cpu()) return;
  auto [least, most] = at::aminmax(index);
  std::int64_t low = least.item<std::int64_t>(), high = most.item<std::int64_t>();
  check(low >= 0 && high < weight.size(0), "embedding: index ", low < 0 ? low : high, " is outside the weight's ",
        weight.size(0), " rows");
}

}  // namespace

at::Tensor embedding(const at::Tensor& given, const at::Tensor& weight, std::int64_t padding_idx) {
  at::Tensor index = given.defined() && given.scalar_type() == at::kInt ? given.to(at::kLong) : given;
  check_index(index, weight);
  check(padding_idx < weight.size(0), "embedding: padding_idx ", padding_idx, " is outside the weight's ",
        weight.size(0), " rows");
  std::int64_t padding = padding_idx >= 0 ? padding_idx : -1;
  auto record = record_for_use(weight);
  if (!record) return at::embedding(weight, index, padding);
  return Embedding::apply(weight, index, padding, record);
}

}  // namespace forge
