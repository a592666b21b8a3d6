// A step in a CUDA graph: captured once, run again with other constants, scales and flags in the device's memory.
#include <array>
#include <cstdint>
#include <vector>

#include "bench/gpu_check/comparison.h"
#include "forge/kernels/testing/rule_cases.h"

namespace forge::gpu_check {
namespace {

// What a captured step reads when it runs.
struct Numbers {
  float scale, skip;
  std::int64_t noise_step;
  alignas(8) std::array<std::byte, RuleStep::kMostBytes> constants;
};

class CapturedStep {
 public:
  template <class F>
  explicit CapturedStep(F&& launch_on) {
    check_cuda(cudaStreamCreate(&stream_));
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    launch_on(stream_);
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream_, &graph));
    check_cuda(cudaGraphInstantiate(&run_, graph, 0));
    check_cuda(cudaGraphDestroy(graph));
  }
  ~CapturedStep() {
    cudaGraphExecDestroy(run_);
    cudaStreamDestroy(stream_);
  }
  CapturedStep(const CapturedStep&) = delete;
  CapturedStep& operator=(const CapturedStep&) = delete;
  void run() const {
    check_cuda(cudaGraphLaunch(run_, stream_));
    check_cuda(cudaStreamSynchronize(stream_));
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t run_ = nullptr;
};

}  // namespace

// Fused and from memory, three updates of a graph beside three of ref; and one that is skipped.
bool check_graph() {
  Check check("graph", "captured_equals_ref");
  Random random(97);
  constexpr Shape kShape = {515, 260};
  constexpr Storage kStorage = {Format::bf16_stochastic, Format::fp32};
  auto rule = [](std::int64_t step) { return step_of<rules::AdamW>(AdamWOptions{}, step); };
  Weight captured = random_weight(kShape, kStorage, rule(1).rule(), random), expected = captured;
  Gradient g(kShape, {"", {{TermSpec::outer, 40}}}, random);
  Gradient dense(kShape, {"", {{TermSpec::dense}}}, random);

  Mirror mirror;
  std::vector<Term> terms, dense_terms;
  Stored W = mirror.stored(captured.W.view());
  std::vector<Stored> S = mirror.stored(captured.moments());
  Expression G = mirror.expression(g.expression(), terms);
  mirror.expression(dense.expression(), dense_terms);
  auto* numbers = static_cast<Numbers*>(allocate(sizeof(Numbers)));
  CapturedStep step([&](cudaStream_t stream) {
    cuda::Launch launch = {.stream = stream,
                           .numbers = {.scale = &numbers->scale,
                                       .skip = &numbers->skip,
                                       .constants = &numbers->constants,
                                       .noise_step = &numbers->noise_step},
                           .exact = true};
    cuda::update(W, S, G, rule(99), launch);
    cuda::WeightInMemory one = {W, S, std::get<Dense>(dense_terms[0])};
    cuda::update_rows({&one, 1}, rule(99), launch);
  });
  for (std::int64_t t = 1; t <= 4; ++t) {
    Numbers now = {0.5f / static_cast<float>(t), t == 4 ? 1.f : 0.f, 7 * t, {}};
    expected.W.noise.step = now.noise_step;
    std::memcpy(now.constants.data(), rule(t).constants(), now.constants.size());
    copy_to_device(numbers, &now, sizeof(now));
    step.run();
    for (Expression from : {g.expression(), dense.expression()}) {
      from.scale = now.scale;
      if (t < 4) update_on_ref(expected, from, rule(t));
    }
    mirror.copy_back();
    check.expect(same_bytes_of(captured, expected), text_of("update ", t));
  }
  release(numbers);
  return check.report();
}

}  // namespace forge::gpu_check
