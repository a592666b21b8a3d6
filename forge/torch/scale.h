#pragma once

#include <ATen/core/Tensor.h>

#include "forge/gradient/terms.h"

namespace forge {

// What a gradient is multiplied by: a number of the host's or, once a factor has come from a device, one in that
// device's memory, which the host does not wait for. On both it is fp32, and its product with the next factor is
// computed in fp64 and rounded.
class Scale {
 public:
  void mul_(double factor);
  // A factor of one element, from any device, for a gradient on this one. Between the host and a device it is read.
  void mul_(const at::Tensor& factor, at::Device device);

  bool on_device() const { return device_.defined(); }
  // As far as the host knows.
  bool is_one() const { return !on_device() && host_ == 1; }
  // Waits for the device where it is there.
  float read() const { return on_device() ? device_.item<float>() : host_; }
  // As fp64, on the device.
  at::Tensor as_tensor(at::Device device) const;
  // G with this scale in place of its own. Valid while this scale lives.
  Expression of(Expression G) const;

 private:
  float host_ = 1;
  at::Tensor device_;  // where defined, in place of the host's
};

// t ← factor · t, with the factor in fp32 also where t has 16 bits.
void scale_in_place(at::Tensor t, const at::Tensor& factor);

}  // namespace forge
