#include "forge/torch/gram.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>

#include "forge/torch/allocation.h"

namespace forge {
namespace {

bool is_cheaper(const Expression& G) {
  bool all_outer = std::ranges::all_of(G.terms, [](const Term& t) { return std::holds_alternative<Outer>(t); });
  return all_outer && outer_tokens(G) * (G.in + G.out) < G.in * G.out;
}

// fp32; a view where m is.
at::Tensor widened(const ConstMatrix& m, float scale) {
  auto type = m.dtype == DType::f32 ? at::kFloat : at::kBFloat16;
  at::Tensor t = at::from_blob(const_cast<void*>(m.data), {m.rows, m.cols}, {m.stride, 1}, type).to(at::kFloat);
  return scale == 1 ? t : t.mul(scale);
}

at::Tensor stacked(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

at::Tensor dY_dYt(const Expression& G) {
  std::vector<at::Tensor> parts;
  for (const Term& term : G.terms) parts.push_back(widened(std::get<Outer>(term).dY, std::get<Outer>(term).scale));
  at::Tensor dY = stacked(parts);
  return dY.mm(dY.t());
}

const at::Tensor& X_Xt(const Expression& G, GramCache& cache) {
  std::vector<const void*> key;
  for (const Term& term : G.terms) key.push_back(std::get<Outer>(term).X.data);
  if (cache.XXt.defined() && cache.key == key && cache.XXt.size(0) == outer_tokens(G)) return cache.XXt;
  std::vector<at::Tensor> parts;
  for (const Term& term : G.terms) parts.push_back(widened(std::get<Outer>(term).X, 1));
  at::Tensor X = stacked(parts);
  cache = {std::move(key), X.mm(X.t())};
  return cache.XXt;
}

struct Sums {
  double sum = 0, absolute = 0;
};

// Σ a∘b and Σ |a∘b| in fp64, row by row: the order does not depend on the threads.
Sums product_sums(const at::Tensor& a, const at::Tensor& b) {
  std::int64_t rows = a.size(0), cols = a.size(1);
  const float *pa = a.const_data_ptr<float>(), *pb = b.const_data_ptr<float>();
  std::vector<Sums> row(static_cast<std::size_t>(rows));
  at::parallel_for(0, rows, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * cols; i < end * cols; ++i) {
      double product = static_cast<double>(pa[i]) * pb[i];
      Sums& s = row[static_cast<std::size_t>(i / cols)];
      s.sum += product;
      s.absolute += std::abs(product);
    }
  });
  Sums total;
  for (const Sums& s : row) total = {total.sum + s.sum, total.absolute + s.absolute};
  return total;
}

at::Tensor row_norms(const ConstMatrix& m) { return at::linalg_vector_norm(widened(m, 1), 2, {1}); }

}  // namespace

std::optional<double> gram_sum_squares(const Expression& G, GramCache& cache) {
  if (G.terms.empty() || !is_cheaper(G)) return std::nullopt;
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  ScopedPurpose purpose(Purpose::workspace);
  Sums s = product_sums(dY_dYt(G), X_Xt(G, cache));
  constexpr double kEps = 0x1p-24;
  if (!std::isfinite(s.sum) || kEps * s.absolute > 1e-6 * s.sum) return std::nullopt;
  return s.sum * G.scale * G.scale;
}

std::optional<double> partial_sum_bound(const Expression& G) {
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  ScopedPurpose purpose(Purpose::workspace);
  double bound = 0;
  for (const Term& term : G.terms) {
    if (const Outer* t = std::get_if<Outer>(&term))
      bound += std::abs(t->scale) * row_norms(t->dY).dot(row_norms(t->X)).item<double>();
    else if (const Rows* t = std::get_if<Rows>(&term))
      bound += std::abs(t->scale) * row_norms(t->values).sum().item<double>();
    else
      return std::nullopt;
  }
  return bound * std::max(1.0, static_cast<double>(std::abs(G.scale)));
}

}  // namespace forge
