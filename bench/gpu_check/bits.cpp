// Contracts 1, 2, 5 and 6 on the device: every byte beside Target::ref, or beside the two-phase update.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/gpu_check/comparison.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/testing/instances.h"
#include "forge/kernels/line_sums.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/norm.h"
#include "forge/kernels/testing/rule_cases.h"

namespace forge::gpu_check {
namespace {

constexpr cuda::Launch kExact = {.stream = nullptr, .numbers = {}, .exact = true}, kFast = {};

// Every rule with every pair of formats, from memory; the sums of a pass, too.
bool check_rows(bool small) {
  Check check("bits", "update_rows_equals_ref");
  Random random(71);
  const std::vector<Shape> shapes = {{9, 33}, {7, 5}, {3, 300}, {129, 257}, {64, 1032}};
  std::size_t turn = 0;
  for (const RuleCase& rule : rule_cases())
    for (const Storage& storage : storages()) {
      const RuleStep step = rule.prepare(2);
      const Shape shape = shapes[turn++ % (small ? 3 : shapes.size())];
      if (small && turn % 8 != 0) continue;
      Buffer D(shape.out, shape.in, DType::f32);
      D.fill([&] { return random.uniform(-1, 1); });
      Term term = Dense{D.view()};
      Weight expected = random_weight(shape, storage, step.rule(), random), there = expected;
      const Sums sums = update_on_ref(expected, {shape.out, shape.in, {&term, 1}}, step);
      const bool same = update_rows_on_device(there, D, step).of_squares == sums.of_squares;
      check.expect(same && same_bytes_of(expected, there), name_of_case(step, storage, shape));
    }
  return check.report();
}

// Whole numbers, of which sums are exact in any order; or numbers of any kind.
Gradient gradient_of(Shape shape, DType dtype, std::int64_t tokens, bool whole, Random& random) {
  GradientSpec spec = {"", {{TermSpec::outer, tokens, 1, dtype, dtype}, {TermSpec::outer, 3, 1, dtype, dtype}}, 0.5f};
  if (whole) return Gradient(shape, spec, random, [&] { return static_cast<float>(random.below(9)) - 4; });
  return Gradient(shape, spec, random);
}

bool check_fused(const char* name, DType dtype, bool whole, const cuda::Launch& launch, bool small) {
  Check check("bits", name);
  Random random(73);
  const std::vector<Shape> shapes = {{130, 137}, {7, 9}, {1, 300}, {129, 257}, {300, 1032}};
  std::size_t turn = 0;
  for (const Instance& instance : instances())
    for (std::int64_t tokens : {0, 1, 31, 128, 333}) {
      const Shape shape = shapes[turn++ % (small ? 3 : shapes.size())];
      if (small && turn % 4 != 0) continue;
      Gradient g = gradient_of(shape, dtype, tokens, whole, random);
      Weight expected = random_weight(shape, instance.storage, instance.rule.rule(), random), there = expected;
      update_on_ref(expected, g.expression(), instance.rule);
      update_on_device(there, g.expression(), instance.rule, launch);
      check.expect(same_bytes_of(expected, there),
                   text_of(name_of_case(instance.rule, instance.storage, shape), ", ", tokens, " tokens"));
    }
  return check.report();
}

// On sizes that fill a device, without ref.
bool check_two_phase(bool small) {
  Check check("bits", "fused_equals_two_phase");
  Random random(79);
  const std::vector<Shape> shapes =
      small ? std::vector<Shape>{{130, 140}} : std::vector<Shape>{{1000, 1032}, {4096, 520}};
  std::size_t turn = 0;
  for (const Shape& shape : shapes)
    for (const Instance& instance : instances())
      for (const cuda::Launch& launch : {kExact, kFast}) {
        const std::int64_t tokens = small ? 37 : (turn++ % 2 ? 2048 : 130);
        Gradient g = gradient_of(shape, DType::bf16, tokens, false, random);
        Weight fused = random_weight(shape, instance.storage, instance.rule.rule(), random), two_phase = fused;
        update_on_device(fused, g.expression(), instance.rule, launch);
        update_rows_on_device(two_phase, materialize_on_device(g.expression(), launch), instance.rule);
        check.expect(same_bytes_of(fused, two_phase),
                     text_of(name_of_case(instance.rule, instance.storage, shape), ", ", tokens, " tokens, ",
                             launch.exact ? "exact" : "tensor cores"));
      }
  return check.report();
}

bool check_norm(bool small) {
  Check check("bits", "norm_equals_ref");
  Random random(83);
  for (const Shape& shape : {Shape{130, 140}, Shape{1, 1}, small ? Shape{9, 300} : Shape{515, 2000}}) {
    Gradient g = gradient_of(shape, DType::f32, 45, false, random);
    Mirror mirror;
    std::vector<Term> terms;
    Doubles sum(mirror, 1), row_sums(mirror, shape.out);
    std::span bytes(reinterpret_cast<std::byte*>(row_sums.there()),
                    static_cast<std::size_t>(shape.out) * sizeof(double));
    cuda::sum_squares(sum.there(), mirror.expression(g.expression(), terms), bytes, kExact);
    mirror.copy_back();
    double expected = on_ref(g.expression(), [&](const Context& c) { return sum_squares(g.expression(), c); });
    double found = sum[0];
    check.expect(found == expected, text_of("(", shape.out, ", ", shape.in, "): ", found, ", not ", expected));
  }
  return check.report();
}

bool check_lines(bool small) {
  Check check("bits", "lines_equal_ref");
  Random random(97);
  for (const Shape& shape : {Shape{130, 140}, Shape{1, 1}, small ? Shape{9, 300} : Shape{515, 9000}}) {
    Buffer D(shape.out, shape.in, DType::f32);
    D.fill([&] { return random.uniform(-1, 1); });
    Term term = Dense{D.view()};
    const Expression G = {shape.out, shape.in, {&term, 1}};
    std::vector<double> rows(static_cast<std::size_t>(shape.out)), columns(static_cast<std::size_t>(shape.in));
    on_ref(G, [&](const Context& c) { sum_squares_of_lines(G, rows, columns, c); });
    Mirror mirror;
    Doubles of_rows(mirror, shape.out), of_columns(mirror, shape.in);
    cuda::sum_squares_of_lines(of_rows.there(), of_columns.there(), mirror.matrix(D.view()), {});
    mirror.copy_back();
    bool same = true;
    for (std::int64_t r = 0; r < shape.out; ++r) same &= of_rows[r] == rows[static_cast<std::size_t>(r)];
    for (std::int64_t c = 0; c < shape.in; ++c) same &= of_columns[c] == columns[static_cast<std::size_t>(c)];
    check.expect(same, text_of("(", shape.out, ", ", shape.in, ")"));
  }
  return check.report();
}

}  // namespace

bool check_bits(bool small) {
  bool right = check_rows(small);
  right &= check_fused("ffma_equals_ref", DType::f32, false, kExact, small);
  right &= check_fused("ffma_equals_ref_from_bf16", DType::bf16, false, kExact, small);
  right &= check_fused("mma_of_whole_numbers_equals_ref", DType::bf16, true, kFast, small);
  right &= check_fused("mma_of_whole_fp16_numbers_equals_ref", DType::f16, true, kFast, small);
  right &= check_two_phase(small);
  right &= check_norm(small);
  right &= check_lines(small);
  return right;
}

bool check_gradient(bool small) {
  Random random(89);
  bool right = true;
  const Shape shape = small ? Shape{140, 150} : Shape{2048, 1024};
  for (std::int64_t tokens : small ? std::vector<std::int64_t>{70} : std::vector<std::int64_t>{128, 2048})
    for (const cuda::Launch& launch : {kExact, kFast}) {
      Gradient g(shape, {"", {{TermSpec::outer, tokens, 1, DType::bf16, DType::bf16}}}, random);
      Buffer D = materialize_on_device(g.expression(), launch);
      const double relative = error_of(D, std::get<Outer>(g.terms()[0]), random).relative;
      // A chain of T fp32 additions errs by about √T · 2⁻²⁵; tensor cores may cut sums off, some 2⁻²³ each time.
      const double bound = launch.exact ? 1e-7 * std::sqrt(static_cast<double>(tokens)) : 2e-5;
      right &= relative <= bound;
      Row("gradient")
          .add("multiplier", launch.exact ? "ffma" : "mma")
          .add("tokens", static_cast<double>(tokens))
          .add("relative_error", relative)
          .add("bound", bound);
    }
  return right;
}

}  // namespace forge::gpu_check
