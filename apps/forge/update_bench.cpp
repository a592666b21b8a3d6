#include "apps/forge/update_bench.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "apps/forge/machine.h"
#include "bench/fma_peak.h"
#include "bench/pages.h"
#include "forge/base/error.h"
#include "forge/base/integers.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/update.h"
#include "forge/torch/executor.h"
#include "forge/torch/make_optimizer.h"

namespace forge::app {
namespace {

// Memory for a matrix in a format, zeros.
class Storage {
 public:
  Storage(std::int64_t rows, std::int64_t cols, Format format, Sign sign) {
    const FormatInfo& info = info_of(format);
    DType values = sign == Sign::any ? info.values : info.not_negative_values;
    Matrix rest;
    values_ = take(rows * cols * static_cast<std::int64_t>(size_of(values)));
    if (info.has_rest) {
      const std::int64_t rest_cols = ceil_div(cols, info.columns_of_rest);
      rest_ = take(rows * rest_cols * static_cast<std::int64_t>(size_of(info.rest)));
      rest = {rest_.get(), info.rest, rows, rest_cols, rest_cols};
    }
    view_ = Stored(format, {values_.get(), values, rows, cols, cols}, rest);
  }
  const Stored& view() const { return view_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  Pages take(std::int64_t bytes) {
    bytes_ += bytes;
    return huge_pages(static_cast<std::size_t>(bytes));
  }

  std::int64_t bytes_ = 0;
  Pages values_, rest_;
  Stored view_;
};

// A weight with its moments, and what its updates took.
struct TimedWeight {
  TimedWeight(const UpdateBenchOptions& o, Format w, Format s, const RuleInfo& rule)
      : weight(w), state(s), W(o.out, o.in, w, Sign::any) {
    for (const Moment& moment : rule.moments) moments.emplace_back(o.out, o.in, s, moment.sign);
    for (const Storage& m : moments) views.push_back(m.view());
  }
  double bytes() const {
    std::int64_t all = W.bytes();
    for (const Storage& m : moments) all += m.bytes();
    return static_cast<double>(all);
  }

  Format weight, state;
  Storage W;
  std::vector<Storage> moments;
  std::vector<Stored> views;
  std::vector<double> fused, two_phase, stream, cached;
};

// The operands of one layer at one number of tokens, small numbers of both signs.
struct Operands {
  Operands(const UpdateBenchOptions& o, std::int64_t tokens)
      : dY(fill(tokens * o.out, 1e-3f)), X(fill(tokens * o.in, 1)) {
    terms = {Outer{{dY.get(), DType::f32, tokens, o.out, o.out}, {X.get(), DType::f32, tokens, o.in, o.in}}};
    G = {.out = o.out, .in = o.in, .terms = terms, .scale = 1};
  }
  static Pages fill(std::int64_t n, float scale) {
    Pages pages = huge_pages(static_cast<std::size_t>(n) * sizeof(float));
    auto* x = static_cast<float*>(pages.get());
    for (std::int64_t i = 0; i < n; ++i) x[i] = scale * (static_cast<float>(i * 2654435761 % 2048) / 1024 - 1);
    return pages;
  }

  Pages dY, X;
  std::vector<Term> terms;
  Expression G;
};

template <class F>
void time(std::vector<double>& to, F&& f) {
  const auto start = BenchClock::now();
  f();
  to.push_back(milliseconds_since(start));
}

// Of a weight and its moments.
using Pairs = std::vector<std::pair<Format, Format>>;

Pairs pairs_of(const RuleInfo& rule) {
  Pairs pairs;
  for (const FormatInfo& w : kFormats)
    for (const FormatInfo& s : kFormats)
      if (w.for_weights && s.for_moments && (!rule.moments.empty() || &s == &kFormats[0]))
        pairs.emplace_back(Format(&w - kFormats), Format(&s - kFormats));
  return pairs;
}

// All weights with their moments, and one gradient in fp32, are there at once; dY and X for each number of tokens.
void check_fits(const UpdateBenchOptions& o, const Pairs& pairs, double moments) {
  const auto size = [](Format format) { return static_cast<double>(size_of(info_of(format).values)); };
  const auto out = static_cast<double>(o.out), in = static_cast<double>(o.in);
  double bytes = sizeof(float);
  for (const auto& [w, s] : pairs) bytes += size(w) + moments * size(s);
  check_memory(out * in * bytes, "the weights of all formats and their moments");
  for (const std::int64_t tokens : o.tokens)
    check_memory(static_cast<double>(tokens) * (out + in) * sizeof(float), "dY and X");
}

class UpdateBench {
 public:
  explicit UpdateBench(const UpdateBenchOptions& o) : options_(o) {
    const RuleStep rule = next_rule();
    const auto pairs = pairs_of(rule.rule());
    check_fits(o, pairs, static_cast<double>(rule.rule().moments.size()));
    for (const auto& [w, s] : pairs) weights_.emplace_back(o, w, s, rule.rule());
    gradient_ = huge_pages(static_cast<std::size_t>(o.out * o.in) * sizeof(float));
    D_ = {gradient_.get(), DType::f32, o.out, o.in, o.in};
  }

  std::vector<UpdateBenchRow> rows(std::int64_t tokens) {
    const Operands operands(options_, tokens);
    AtExecutor executor;
    std::vector<double> gflops;
    for (TimedWeight& w : weights_) w.fused.clear(), w.two_phase.clear(), w.stream.clear(), w.cached.clear();
    for (std::int64_t i = 0; i <= options_.repetitions; ++i) {
      gflops.push_back(fma_gflops(executor));
      for (TimedWeight& w : weights_) measure(w, operands.G);
    }
    const double product_ms =
        2e-6 * static_cast<double>(tokens * options_.out * options_.in) / std::max(median(gflops), 1e-9);
    std::vector<UpdateBenchRow> all;
    for (const TimedWeight& w : weights_)
      all.push_back({.weight = w.weight,
                     .state = w.state,
                     .tokens = tokens,
                     .fused_ms = after_first(w.fused),
                     .two_phase_ms = after_first(w.two_phase),
                     .limit_ms = std::max(after_first(w.stream), product_ms),
                     .work_ms = after_first(w.cached) + product_ms,
                     .bytes_per_parameter = w.bytes() / static_cast<double>(options_.out * options_.in)});
    return all;
  }

 private:
  // The first repetition faults pages in.
  static double after_first(std::vector<double> x) {
    x.erase(x.begin());
    return median(std::move(x));
  }

  RuleStep next_rule() {
    RuleStep step = prepare_rule(options_.rule, {}, progress_);
    progress_ = next_progress(options_.rule, {}, progress_);
    return step;
  }

  void measure(TimedWeight& w, const Expression& G) {
    const Expression nothing = {.out = G.out, .in = G.in, .terms = {}, .scale = 1};
    const Term dense = Dense{D_};
    const Expression multiplied = {.out = G.out, .in = G.in, .terms = {&dense, 1}, .scale = 1};
    time(w.fused, [&] { update(w.W.view(), w.views, G, next_rule(), torch_context(G)); });
    time(w.two_phase, [&] {
      materialize(D_, G, torch_context(G));
      update(w.W.view(), w.views, multiplied, next_rule(), torch_context(multiplied));
    });
    time(w.stream, [&] { update(w.W.view(), w.views, nothing, next_rule(), torch_context(nothing)); });
    w.cached.push_back(from_cache_ms(w));
  }

  // What all rows would take if they were as near as a few rows that one thread updates again and again.
  double from_cache_ms(TimedWeight& w) {
    constexpr std::int64_t kRows = 4, kTimes = 64;  // in fp32 at 4096 columns, 192 KiB: an L2 cache
    const std::int64_t rows = std::min(kRows, options_.out);
    const Expression nothing = {.out = rows, .in = options_.in, .terms = {}, .scale = 1};
    auto few = [&](const Stored& m) { return shard_of(m, 0, rows, 0, options_.in); };
    std::vector<Stored> views;
    for (const Stored& m : w.views) views.push_back(few(m));
    SerialExecutor executor;
    std::vector<std::byte> workspace(workspace_bytes(nothing, executor.workers()));
    const auto start = BenchClock::now();
    for (std::int64_t i = 0; i < kTimes; ++i)
      update(few(w.W.view()), views, nothing, next_rule(), {executor, workspace});
    const double ms_of_one = milliseconds_since(start) / static_cast<double>(rows * kTimes);
    return ms_of_one * static_cast<double>(options_.out) / AtExecutor().workers();
  }

  UpdateBenchOptions options_;
  Progress progress_;
  std::vector<TimedWeight> weights_;
  Pages gradient_;
  Matrix D_;
};

const UpdateBenchRow& fp32_of(const UpdateBenchRow& row, const std::vector<UpdateBenchRow>& rows) {
  return *std::find_if(rows.begin(), rows.end(), [&](const UpdateBenchRow& other) {
    return other.tokens == row.tokens && other.weight == Format::fp32 && other.state == Format::fp32;
  });
}

}  // namespace

std::vector<UpdateBenchRow> bench_update(const UpdateBenchOptions& options) {
  UpdateBench bench(options);
  std::vector<UpdateBenchRow> all;
  for (const std::int64_t tokens : options.tokens) {
    std::vector<UpdateBenchRow> rows = bench.rows(tokens);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

nlohmann::ordered_json to_json(const std::vector<UpdateBenchRow>& rows) {
  nlohmann::ordered_json result = nlohmann::ordered_json::array();
  for (const UpdateBenchRow& row : rows)
    result.push_back({{"weight", name_of(row.weight)},
                      {"state", name_of(row.state)},
                      {"tokens", row.tokens},
                      {"fused_ms", row.fused_ms},
                      {"two_phase_ms", row.two_phase_ms},
                      {"limit_ms", row.limit_ms},
                      {"share_of_limit", row.share_of_limit()},
                      {"work_ms", row.work_ms},
                      {"share_of_work", row.share_of_work()},
                      {"bytes_per_parameter", row.bytes_per_parameter}});
  return result;
}

std::string to_table(const std::vector<UpdateBenchRow>& rows) {
  std::string table =
      fmt::format("{:>6}  {:<16}{:<16}{:>8}{:>10}{:>11}{:>10}{:>9}{:>9}{:>7}{:>12}\n", "tokens", "weights", "moments",
                  "bytes", "fused ms", "two-phase", "limit ms", "share", "work ms", "share", "x fp32");
  for (const UpdateBenchRow& row : rows)
    table += fmt::format("{:>6}  {:<16}{:<16}{:>8.4g}{:>10.2f}{:>11.2f}{:>10.2f}{:>8.0f}%{:>9.2f}{:>6.0f}%{:>12.2f}\n",
                         row.tokens, name_of(row.weight), name_of(row.state), row.bytes_per_parameter, row.fused_ms,
                         row.two_phase_ms, row.limit_ms, 100 * row.share_of_limit(), row.work_ms,
                         100 * row.share_of_work(), fp32_of(row, rows).fused_ms / row.fused_ms);
  return table;
}

}  // namespace forge::app
