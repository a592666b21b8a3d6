// Hopper's own kernels: their gradients beside double precision and beside the other tensor-core kernel, then their
// bits.
#include "forge/kernels/cuda/hopper.h"

#include <cstdint>
#include <vector>

#include "bench/gpu_check/comparison.h"
#include "forge/kernels/cuda/testing/aligned.h"
#include "forge/kernels/cuda/testing/instances.h"

namespace forge::gpu_check {
namespace {

struct Case {
  Shape shape;
  std::int64_t tokens;
};

GradientSpec product(std::int64_t tokens) { return {"", {{TermSpec::outer, tokens, 1, DType::bf16, DType::bf16}}}; }

// ‖A − B‖ / ‖B‖.
double distance(const Buffer& a, const Buffer& b) {
  double error = 0, norm = 0;
  const std::vector<float> x = a.numbers(), y = b.numbers();
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
    norm += static_cast<double>(y[i]) * y[i];
  }
  return std::sqrt(error / norm);
}

// Random numbers. What is wrong of a tile, a stage or a fragment is an error of about 1.
bool check_gradients(bool small) {
  constexpr double kBound = 2e-5;  // tensor cores may cut sums off, some 2⁻²³ each time
  Random random(101);
  bool right = true;
  std::vector<Case> cases = {{{128, 128}, 64}, {{140, 150}, 70}, {{3, 300}, 1}};
  if (!small)
    cases.insert(cases.end(), {{{1000, 1032}, 130}, {{4096, 520}, 2048}, {{1024, 4096}, 4096}, {{9, 12345}, 1000}});
  for (const auto& [shape, tokens] : cases) {
    Gradient g(shape, product(tokens), random);
    Aligned aligned(g.expression());
    const Expression& G = aligned.expression();
    Buffer D = materialize_on_device(G, {}, cuda::materialize_on_hopper), other = materialize_on_device(G, {});
    const auto [relative, largest] = error_of(D, std::get<Outer>(G.terms[0]), random);
    const double difference = distance(D, other);
    right &= relative <= kBound && largest <= kBound && difference <= 2 * kBound;
    Row("hopper")
        .add("out", static_cast<double>(shape.out))
        .add("in", static_cast<double>(shape.in))
        .add("tokens", static_cast<double>(tokens))
        .add("relative_error", relative)
        .add("largest_error", largest)
        .add("difference_from_mma", difference)
        .add("bound", kBound);
  }
  return right;
}

// Whole numbers, of which sums are exact in any order.
bool check_updates(bool small) {
  Check check("hopper", "whole_numbers_equal_ref");
  Random random(103);
  const std::vector<Shape> shapes = {{130, 137}, {7, 9}, {1, 300}, {129, 257}, {300, 1032}};
  std::size_t turn = 0;
  for (const Instance& instance : instances_on_hopper())
    for (std::int64_t tokens : {1, 63, 64, 65, 333}) {
      const Shape shape = shapes[turn++ % (small ? 3 : shapes.size())];
      if (small && turn % 4 != 0) continue;
      Gradient g(shape, product(tokens), random, whole_numbers(random));
      Aligned aligned(g.expression());
      Weight expected = random_weight(shape, instance.storage, instance.rule.rule(), random), there = expected;
      update_on_ref(expected, g.expression(), instance.rule);
      update_on_device(there, aligned.expression(), instance.rule, {}, cuda::update_on_hopper);
      check.expect(same_bytes_of(expected, there),
                   text_of(name_of_case(instance.rule, instance.storage, shape), ", ", tokens, " tokens"));
    }
  return check.report();
}

// On sizes that fill a device, of any numbers.
bool check_two_phase(bool small) {
  Check check("hopper", "fused_equals_two_phase");
  Random random(107);
  const std::vector<Case> cases = small
                                      ? std::vector<Case>{{{130, 140}, 37}}
                                      : std::vector<Case>{{{1000, 1032}, 130}, {{4096, 520}, 2048}, {{2048, 5000}, 40}};
  for (const auto& [shape, tokens] : cases)
    for (const Instance& instance : instances_on_hopper()) {
      Gradient g(shape, product(tokens), random);
      Aligned aligned(g.expression());
      Weight fused = random_weight(shape, instance.storage, instance.rule.rule(), random), two_phase = fused;
      update_on_device(fused, aligned.expression(), instance.rule, {}, cuda::update_on_hopper);
      update_rows_on_device(two_phase, materialize_on_device(aligned.expression(), {}, cuda::materialize_on_hopper),
                            instance.rule);
      check.expect(same_bytes_of(fused, two_phase),
                   text_of(name_of_case(instance.rule, instance.storage, shape), ", ", tokens, " tokens"));
    }
  return check.report();
}

}  // namespace

bool check_hopper(bool small) {
  if (!cuda::is_hopper()) {
    Row("hopper").add("left_out", "the device does not have compute capability 9.0");
    return true;
  }
  bool right = check_gradients(small);
  right &= check_updates(small);
  right &= check_two_phase(small);
  return right && (small || measure_hopper());
}

}  // namespace forge::gpu_check
