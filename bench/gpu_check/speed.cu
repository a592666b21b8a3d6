// How long updates take on this device: fused, in two phases with kernels of ours, and what moving the bytes takes.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "bench/gpu_check/device_memory.h"
#include "bench/gpu_check/parts.h"
#include "forge/base/integers.h"
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

void measure(const Regime& regime, std::int64_t out, std::int64_t in, std::int64_t tokens, double rate) {
  StoredBlock W(regime.weight, out, in, true), m(regime.state, out, in, false), v(regime.state, out, in, false);
  Block dY = random_block(regime.operands, tokens, out, 11), X = random_block(regime.operands, tokens, in, 13);
  Block D(out * in * static_cast<std::int64_t>(size_of(regime.gradient)));
  Term term = Outer{matrix(dY, regime.operands, tokens, out), matrix(X, regime.operands, tokens, in)};
  const Expression G = {out, in, {&term, 1}};
  const RuleStep rule = OptimizingOf<AdamWOptions>::prepare({.lr = 1e-5}, 2);
  Stored weight = W.view(Sign::any);
  const std::vector<Stored> S = {m.view(Sign::any), v.view(Sign::not_negative)};
  const cuda::WeightInMemory one = {weight, S, Dense{matrix(D, regime.gradient, out, in)}};

  auto fused = [&] { cuda::update(weight, S, G, rule, {}); };
  auto materialize = [&] { cuda::materialize(matrix(D, regime.gradient, out, in), G, {}); };
  auto rows = [&] { cuda::update_rows({&one, 1}, rule, {}); };
  const double moved = 2 * (W.bytes() + m.bytes() + v.bytes());
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
      .add("memory_ms", moved / rate * 1e3)
      .add("gradient_tflops", 2e-9 * static_cast<double>(tokens * out * in) / materialize_ms);
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
  struct Shape {
    std::int64_t out, in;
  };
  for (Shape shape : {Shape{4096, 4096}, Shape{4096, 14336}})
    for (std::int64_t tokens : {128, 512, 2048, 8192})
      for (const Regime& regime : kRegimes) {
        if (regime.operands == DType::f32 && tokens > 2048) continue;  // seconds, and the same as at 2048
        measure(regime, shape.out, shape.in, tokens, rate);
      }
  return true;
}

}  // namespace forge::gpu_check
