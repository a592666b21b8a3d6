// How long updates take on this device: fused, in two phases with kernels of ours, and what moving the bytes takes.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "bench/gpu_check/device_memory.h"
#include "bench/gpu_check/parts.h"
#include "forge/base/integers.h"
#include "forge/kernels/cuda/hopper.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/rules/list.h"

namespace forge::gpu_check {
namespace {

// Memory of the device for as long as this lives.
class Block {
 public:
  explicit Block(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)), data_(allocate(bytes_)) {
    check_cuda(cudaMemset(data_, 0, bytes_));
  }
  Block(Block&& other) noexcept : bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  ~Block() { release(data_); }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_;
};

// Uniform in [−1, 1), of a mixed counter.
__global__ void fill(float* x, std::int64_t n, std::uint32_t seed) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    auto z = static_cast<std::uint32_t>(i) * 0x9E3779B9u + seed;
    z = (z ^ z >> 16) * 0x85EBCA6Bu;
    z = (z ^ z >> 13) * 0xC2B2AE35u;
    x[i] = static_cast<float>(static_cast<std::int32_t>(z ^ z >> 16)) * 0x1p-31f;
  }
}

Matrix matrix(const Block& block, DType dtype, std::int64_t rows, std::int64_t cols) {
  return {block.data(), dtype, rows, cols, cols};
}

// A random matrix in a type of numbers.
Block random_block(DType dtype, std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  Block numbers(rows * cols * 4);
  fill<<<1024, 256>>>(static_cast<float*>(numbers.data()), rows * cols, seed);
  check_cuda(cudaGetLastError());
  if (dtype == DType::f32) return numbers;
  Block rounded(rows * cols * 2);
  Term term = Dense{matrix(numbers, DType::f32, rows, cols)};
  cuda::materialize(matrix(rounded, DType::bf16, rows, cols), {rows, cols, {&term, 1}}, {});
  check_cuda(cudaDeviceSynchronize());
  return rounded;
}

// A stored matrix of zeros, or with random numbers where it is stored as they are.
struct StoredBlock {
  Format format;
  std::int64_t rows, cols;
  Block values, rest;

  StoredBlock(Format f, std::int64_t out, std::int64_t in, bool random)
      : format(f),
        rows(out),
        cols(in),
        values(random ? random_block(info_of(f).values, out, in, 7)
                      : Block(out * in * static_cast<std::int64_t>(size_of(info_of(f).values)))),
        rest(info_of(f).has_rest
                 ? out * ceil_div(in, info_of(f).columns_of_rest) * static_cast<std::int64_t>(size_of(info_of(f).rest))
                 : 0) {}
  Stored view(Sign sign) const {
    const FormatInfo& info = info_of(format);
    DType dtype = sign == Sign::any ? info.values : info.not_negative_values;
    Matrix of_rest = info.has_rest ? matrix(rest, info.rest, rows, ceil_div(cols, info.columns_of_rest)) : Matrix{};
    return {format, matrix(values, dtype, rows, cols), of_rest, {.seed = 1, .parameter = 2, .step = 3}};
  }
  double bytes() const { return static_cast<double>(values.bytes() + rest.bytes()); }
};

// The median of some runs, in milliseconds, after some that do not count.
template <class F>
double milliseconds(F&& f) {
  constexpr int kWarmUp = 3, kRuns = 21;
  cudaEvent_t begin, end;
  check_cuda(cudaEventCreate(&begin));
  check_cuda(cudaEventCreate(&end));
  std::vector<float> all;
  for (int run = -kWarmUp; run < kRuns; ++run) {
    check_cuda(cudaEventRecord(begin));
    f();
    check_cuda(cudaEventRecord(end));
    check_cuda(cudaEventSynchronize(end));
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end));
    if (run >= 0) all.push_back(ms);
  }
  check_cuda(cudaEventDestroy(begin));
  check_cuda(cudaEventDestroy(end));
  std::nth_element(all.begin(), all.begin() + kRuns / 2, all.end());
  return all[kRuns / 2];
}

// Bytes a second that a copy reads and writes.
double copy_rate() {
  constexpr std::int64_t kBytes = std::int64_t{1} << 30;
  Block from(kBytes), to(kBytes);
  double ms =
      milliseconds([&] { check_cuda(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice)); });
  return 2.0 * kBytes / (ms * 1e-3);
}

// Of a product that takes so long.
double tflops(std::int64_t out, std::int64_t in, std::int64_t tokens, double ms) {
  return 2e-9 * static_cast<double>(tokens * out * in) / ms;
}

// gpu.md's names of what is stored how.
struct Regime {
  const char* name;
  Format weight, state;
  DType operands, gradient;  // of two phases
};
constexpr Regime kRegimes[] = {
    {"F32", Format::fp32, Format::fp32, DType::f32, DType::f32},
    {"B16", Format::bf16_stochastic, Format::fp32, DType::bf16, DType::bf16},
    {"SPL16", Format::bf16_plus16, Format::fp32, DType::bf16, DType::bf16},
    {"SPL8", Format::bf16_plus8, Format::fp32, DType::bf16, DType::bf16},
    {"Q8", Format::bf16_stochastic, Format::int8, DType::bf16, DType::bf16},
};

// An update as a regime has it, from operands of some type.
struct Update {
  StoredBlock W, m, v;
  Block dY, X, D;
  DType gradient;
  Term term;
  RuleStep rule = OptimizingOf<AdamWOptions>::prepare({.lr = 1e-5}, 2);

  Update(const Regime& regime, DType operands, std::int64_t out, std::int64_t in, std::int64_t tokens)
      : W(regime.weight, out, in, true),
        m(regime.state, out, in, false),
        v(regime.state, out, in, false),
        dY(random_block(operands, tokens, out, 11)),
        X(random_block(operands, tokens, in, 13)),
        D(out * in * static_cast<std::int64_t>(size_of(regime.gradient))),
        gradient(regime.gradient),
        term(Outer{matrix(dY, operands, tokens, out), matrix(X, operands, tokens, in)}) {}

  Stored weight() const { return W.view(Sign::any); }
  std::vector<Stored> moments() const { return {m.view(Sign::any), v.view(Sign::not_negative)}; }
  Expression G() const { return {W.rows, W.cols, {&term, 1}}; }
  Matrix stored() const { return matrix(D, gradient, W.rows, W.cols); }
  double moved_bytes() const { return 2 * (W.bytes() + m.bytes() + v.bytes()); }
};

void measure(const Regime& regime, std::int64_t out, std::int64_t in, std::int64_t tokens, double rate) {
  const Update u(regime, regime.operands, out, in, tokens);
  const std::vector<Stored> S = u.moments();
  const cuda::WeightInMemory one = {u.weight(), S, Dense{u.stored()}};
  auto fused = [&] { cuda::update(u.weight(), S, u.G(), u.rule, {}); };
  auto materialize = [&] { cuda::materialize(u.stored(), u.G(), {}); };
  auto rows = [&] { cuda::update_rows({&one, 1}, u.rule, {}); };
  const double fused_ms = milliseconds(fused), materialize_ms = milliseconds(materialize), rows_ms = milliseconds(rows);
  const double two_phase_ms = milliseconds([&] { materialize(), rows(); });
  Row("speed")
      .add("regime", regime.name)
      .add("out", static_cast<double>(out))
      .add("in", static_cast<double>(in))
      .add("tokens", static_cast<double>(tokens))
      .add("fused_ms", fused_ms)
      .add("two_phase_ms", two_phase_ms)
      .add("materialize_ms", materialize_ms)
      .add("rows_ms", rows_ms)
      .add("memory_ms", u.moved_bytes() / rate * 1e3)
      .add("gradient_tflops", tflops(out, in, tokens, materialize_ms));
}

// Hopper's own kernels, from bf16 whatever the regime.
void measure_on_hopper(const Regime& regime, std::int64_t out, std::int64_t in, std::int64_t tokens, double rate) {
  const Update u(regime, DType::bf16, out, in, tokens);
  const std::vector<Stored> S = u.moments();
  const double update_ms = milliseconds([&] { cuda::update_on_hopper(u.weight(), S, u.G(), u.rule, {}); });
  const double materialize_ms = milliseconds([&] { cuda::materialize_on_hopper(u.stored(), u.G(), {}); });
  Row("hopper")
      .add("regime", regime.name)
      .add("out", static_cast<double>(out))
      .add("in", static_cast<double>(in))
      .add("tokens", static_cast<double>(tokens))
      .add("update_ms", update_ms)
      .add("materialize_ms", materialize_ms)
      .add("memory_ms", u.moved_bytes() / rate * 1e3)
      .add("gradient_tflops", tflops(out, in, tokens, materialize_ms));
}

// Calls f(regime, out, in, tokens) for all that is measured.
template <class F>
void for_each_case(F&& f) {
  struct Shape {
    std::int64_t out, in;
  };
  for (Shape shape : {Shape{4096, 4096}, Shape{4096, 14336}})
    for (std::int64_t tokens : {128, 512, 2048, 8192})
      for (const Regime& regime : kRegimes) f(regime, shape.out, shape.in, tokens);
}

}  // namespace

bool measure_speed() {
  cudaDeviceProp device;
  check_cuda(cudaGetDeviceProperties(&device, 0));
  const double rate = copy_rate();
  Row("device")
      .add("name", device.name)
      .add("multiprocessors", device.multiProcessorCount)
      .add("copy_gb_s", rate * 1e-9);
  for_each_case([&](const Regime& regime, std::int64_t out, std::int64_t in, std::int64_t tokens) {
    if (regime.operands == DType::f32 && tokens > 2048) return;  // seconds, and the same as at 2048
    measure(regime, out, in, tokens, rate);
  });
  return true;
}

bool measure_hopper() {
  const double rate = copy_rate();
  for_each_case([&](const Regime& regime, std::int64_t out, std::int64_t in, std::int64_t tokens) {
    measure_on_hopper(regime, out, in, tokens, rate);
  });
  return true;
}

}  // namespace forge::gpu_check
