#include "forge/torch/scale.h"

#include <ATen/ops/full.h>

namespace forge {

void Scale::mul_(double factor) {
  if (on_device())
    device_ = as_tensor(device_.device()).mul(factor).to(at::kFloat);
  else
    host_ = static_cast<float>(host_ * factor);
}

void Scale::mul_(const at::Tensor& factor, at::Device device) {
  if (factor.is_cpu() || device.is_cpu()) return mul_(factor.item<double>());
  device_ = as_tensor(device).mul(factor.reshape({}).to(device, at::kDouble)).to(at::kFloat);
}

at::Tensor Scale::as_tensor(at::Device device) const {
  return on_device() ? device_.to(at::kDouble) : at::full({}, host_, at::TensorOptions(at::kDouble).device(device));
}

Expression Scale::of(Expression G) const {
  G.scale = host_;
  G.scale_on_device = on_device() ? device_.const_data_ptr<float>() : nullptr;
  return G;
}

void scale_in_place(at::Tensor t, const at::Tensor& factor) {
  if (factor.is_cpu() || t.is_cpu()) {
    t.mul_(static_cast<float>(factor.item<double>()));
    return;
  }
  at::Tensor number = factor.reshape({}).to(t.device(), at::kFloat);
  if (t.scalar_type() == at::kFloat)
    t.mul_(number);
  else
    t.copy_(t.to(at::kFloat).mul_(number));  // torch rounds a tensor's number to the other's 16 bits
}

}  // namespace forge
