#include "forge/torch/handle.h"

namespace forge {
namespace {

GradientHandles* installed = nullptr;

}  // namespace

void install(GradientHandles* handles) { installed = handles; }
GradientHandles* gradient_handles() { return installed; }

std::shared_ptr<Gradient> gradient_behind(const at::Tensor& grad) {
  // Handles have no memory of their own; asking the other language about every tensor would cost a lock.
  bool candidate = installed != nullptr && grad.defined() && grad.key_set().has(c10::DispatchKey::Python);
  return candidate ? installed->find(grad) : nullptr;
}

}  // namespace forge
