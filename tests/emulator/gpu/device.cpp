// The emulated GPU as a device of torch, "emulated": memory that the host may not look at, the kernels of
// forge/kernels/cuda on the emulated machine, and every operation of torch's own done by the CPU on copies. A library
// that is loaded registers it.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Generator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "forge/torch/device_kernels.h"
#include "forge/torch/dispatch.h"
#include "tests/emulator/device_memory.h"
#include "tests/emulator/gpu/device.h"

namespace forge::emulator {
namespace {

constexpr at::DeviceType kType = at::kPrivateUse1;

// ---- One device with one stream -----------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr at::DeviceType static_type = kType;

  Guard() = default;
  explicit Guard(at::DeviceType) {}
  at::DeviceType type() const override { return kType; }
  at::Device exchangeDevice(at::Device) const override { return kGpu; }
  at::Device getDevice() const override { return kGpu; }
  void setDevice(at::Device) const override {}
  void uncheckedSetDevice(at::Device) const noexcept override {}
  c10::Stream getStream(at::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
  c10::Stream getDefaultStream(at::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void* getStreamNativeHandle(c10::Stream) const override { return nullptr; }
  at::DeviceIndex deviceCount() const noexcept override { return 1; }
  // Everything is done when it is launched.
  void record(void**, const c10::Stream&, at::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(at::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(at::DeviceIndex) const override { return true; }
  at::DeviceIndex deviceCount() const override { return 1; }
  at::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(at::DeviceIndex) const override {}
  at::DeviceIndex exchangeDevice(at::DeviceIndex) const override { return 0; }
  at::DeviceIndex maybeExchangeDevice(at::DeviceIndex) const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t bytes) const override;
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = bytes == 0 ? nullptr : allocate_device_memory(bytes);
    return {data, data, &release, kGpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    DeviceMemoryAccess access;
    std::memcpy(to, from, bytes);
  }
  static void release(void* data) {
    if (data != nullptr) free_device_memory(data);
  }
};
Allocator allocator;

void Hooks::resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t bytes) const {
  c10::DataPtr data = allocator.allocate(bytes);
  allocator.copy_data(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
  storage.set_data_ptr_noswap(std::move(data));
  storage.set_nbytes(bytes);
}

// ---- Tensors ------------------------------------------------------------------------------------------------------

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &allocator, kKeys, dtype.value_or(at::kFloat), format);
}
at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &allocator, kKeys, dtype.value_or(at::kFloat));
}

// The same memory, seen by the host: for as long as an access lives.
at::Tensor on_host(const at::Tensor& t) {
  if (t.is_cpu()) return t;
  return at::for_blob(t.data_ptr(), t.sizes())
      .strides(t.strides())
      .options(t.options().device(at::kCPU))
      .target_device(at::Device(at::kCPU))
      .make_tensor();
}

// What an operation of the device does by the CPU is no business of the host's.
std::int64_t counted = 0;
thread_local bool by_device = false;
void count_read_back() { counted += by_device ? 0 : 1; }

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (to.is_cpu()) count_read_back();
  DeviceMemoryAccess access;
  on_host(to).copy_(on_host(from));
  return to;
}
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}
at::Scalar local_scalar_dense(const at::Tensor& t) {
  count_read_back();
  DeviceMemoryAccess access;
  return on_host(t).item();
}
const at::Tensor& resize_(const at::Tensor& t, at::IntArrayRef sizes, std::optional<at::MemoryFormat> format) {
  DeviceMemoryAccess access;
  return at::native::resize_(t, sizes, format);
}

// A lookup by numbers has a shape of its own, and the tag, for the sake of masks.
bool waits(const c10::OperatorHandle& op) {
  bool is_lookup = op.operator_name().name == "aten::index";
  return op.hasTag(at::Tag::data_dependent_output) || (op.hasTag(at::Tag::dynamic_output_shape) && !is_lookup);
}

// What no operation above does: the CPU, on copies.
void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (waits(op)) count_read_back();
  const bool before = std::exchange(by_device, true);
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    by_device = before;
    throw;
  }
  by_device = before;
}

bool add_device() {
  static Hooks hooks;
  c10::register_privateuse1_backend("emulated");
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::SetAllocator(kType, &allocator);
  return add_gpu(kType, cuda::operations());
}
const bool added = add_device();

}  // namespace

std::int64_t read_backs() { return counted; }

}  // namespace forge::emulator

TORCH_LIBRARY(emulated, m) { m.def("read_backs() -> int", &forge::emulator::read_backs); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  using namespace forge::emulator;
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("resize_", resize_);
  m.impl("view", at::native::view);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_.source_Storage", at::native::set_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&forge::emulator::by_cpu>());
}

// As of a real GPU: uses of held weights are recorded.
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {
  forge::put_before_linear(m);
  forge::put_before_embedding(m);
}
