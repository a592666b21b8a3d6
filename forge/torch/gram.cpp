#include "forge/torch/gram.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "forge/torch/allocation.h"
#include "forge/torch/matrix_view.h"

namespace forge {
namespace {

// Every term but Dense is L[t]ᵀ R[t] summed over tokens: L is dY or, for rows, the unit vector of the row; R is X or
// the values. Then ‖G‖² = Σ (L Lᵀ)∘(R Rᵀ) over all tokens of all terms.
bool has_dense(const Expression& G) {
  return std::ranges::any_of(G.terms, [](const Term& t) { return std::holds_alternative<Dense>(t); });
}

const ConstMatrix& right_of(const Term& term) {
  const Outer* outer = std::get_if<Outer>(&term);
  return outer ? outer->X : std::get<Rows>(term).values;
}

std::int64_t tokens_of(const Expression& G) {
  std::int64_t tokens = 0;
  for (const Term& term : G.terms) tokens += right_of(term).rows;
  return tokens;
}

// fp32; a view where m is.
at::Tensor widened(const ConstMatrix& m, float scale) {
  at::Tensor t = at::from_blob(const_cast<void*>(m.data), {m.rows, m.cols}, {m.stride, 1}, scalar_type_of(m.dtype));
  t = t.to(at::kFloat);
  return scale == 1 ? t : t.mul(scale);
}

at::Tensor index_of(const Rows& rows) {
  return at::from_blob(const_cast<std::int64_t*>(rows.index), {rows.values.rows}, at::kLong);
}

at::Tensor stacked(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

// Products M Mᵀ, of which only what is on and above the diagonal is computed: blocks of rows, all in one go, since one
// such product is too small to be worth waking threads for.
class SymmetricProducts {
 public:
  // M Mᵀ, there after run().
  at::Tensor add(at::Tensor M) {
    at::Tensor product = at::empty({M.size(0), M.size(0)}, at::kFloat);
    products_.push_back({std::move(M), product});
    return product;
  }

  void run() const {
    struct Block {
      const Product* product;
      std::int64_t begin, end;
    };
    std::vector<Block> blocks;
    for (const Product& p : products_) {
      // Equal parts of the triangle, of some 32 rows: fewer waste less of a product's speed, more waste less of the
      // triangle below.
      std::int64_t n = p.M.size(0), parts = std::max<std::int64_t>({1, at::get_num_threads(), n / 32});
      auto row = [&](std::int64_t i) {
        double rest = 1 - static_cast<double>(i) / static_cast<double>(parts);
        return static_cast<std::int64_t>(static_cast<double>(n) * (1 - std::sqrt(rest)));
      };
      for (std::int64_t i = 0; i < parts; ++i)
        if (row(i) < row(i + 1)) blocks.push_back({&p, row(i), row(i + 1)});
    }
    at::parallel_for(0, static_cast<std::int64_t>(blocks.size()), 1, [&](std::int64_t begin, std::int64_t end) {
      at::NoGradGuard no_grad;
      for (std::int64_t i = begin; i < end; ++i) {
        const auto& [p, first, last] = blocks[static_cast<std::size_t>(i)];
        at::Tensor to = p->product.slice(0, first, last).slice(1, first);
        at::mm_out(to, p->M.slice(0, first, last), p->M.slice(0, first).t());
      }
    });
  }

 private:
  struct Product {
    at::Tensor M, product;
  };
  std::vector<Product> products_;
};

// L of all Outer terms, and the rows and scales of all Rows terms.
struct Left {
  at::Tensor dY, row, scale;

  explicit Left(const Expression& G) {
    std::vector<at::Tensor> outer, index, scales;
    for (const Term& term : G.terms) {
      if (const Outer* t = std::get_if<Outer>(&term)) {
        outer.push_back(widened(t->dY, t->scale));
      } else {
        const Rows& rows = std::get<Rows>(term);
        index.push_back(index_of(rows));
        scales.push_back(at::full({rows.values.rows}, rows.scale, at::kFloat));
      }
    }
    if (!outer.empty()) dY = stacked(outer);
    if (!index.empty()) row = stacked(index), scale = stacked(scales);
  }

  // L Lᵀ, Outer terms before Rows terms; dY dYᵀ is given where there are Outer terms.
  at::Tensor gram(const at::Tensor& dY_dYt) const {
    if (!row.defined()) return dY_dYt;
    at::Tensor same_row = row.unsqueeze(0).eq(row.unsqueeze(1)).to(at::kFloat).mul(scale).mul(scale.unsqueeze(1));
    if (!dY.defined()) return same_row;
    at::Tensor mixed = dY.index_select(1, row).mul(scale);
    return at::cat({at::cat({dY_dYt, mixed}, 1), at::cat({mixed.t(), same_row}, 1)});
  }
};

// R Rᵀ in the same order, from the cache or as one of the products.
GramCache right_gram(const Expression& G, const GramCache& cache, SymmetricProducts& products) {
  std::vector<const void*> key;
  std::vector<at::Tensor> parts;
  for (bool outer : {true, false})
    for (const Term& term : G.terms) {
      if (std::holds_alternative<Outer>(term) != outer) continue;
      key.push_back(right_of(term).data);
      parts.push_back(widened(right_of(term), 1));
    }
  if (cache.RRt.defined() && cache.key == key && cache.RRt.size(0) == tokens_of(G)) return cache;
  return {std::move(key), products.add(stacked(parts))};
}

struct Sums {
  double sum = 0, absolute = 0;
};

Sums row_sums(const float* a, const float* b, std::int64_t n) {
  constexpr int kLanes = 8;  // sums of their own, which the compiler may keep in vectors
  double sum[kLanes] = {}, absolute[kLanes] = {};
  auto add = [&](std::int64_t j, int lane) {
    double product = static_cast<double>(a[j]) * b[j];
    sum[lane] += product;
    absolute[lane] += std::abs(product);
  };
  std::int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) add(j + lane, lane);
  for (; j < n; ++j) add(j, 0);
  return {std::accumulate(sum, sum + kLanes, 0.0), std::accumulate(absolute, absolute + kLanes, 0.0)};
}

// Σ a∘b and Σ |a∘b| of symmetric matrices, from their upper triangles, in fp64 and row by row: the order does not
// depend on the threads.
Sums product_sums(const at::Tensor& a, const at::Tensor& b) {
  std::int64_t n = a.size(0);
  const float *pa = a.const_data_ptr<float>(), *pb = b.const_data_ptr<float>();
  std::vector<Sums> diagonal(static_cast<std::size_t>(n)), right(static_cast<std::size_t>(n));
  constexpr std::int64_t kWorthAThread = 1 << 16;  // products: some 30 µs
  at::parallel_for(0, n, kWorthAThread / (n + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::int64_t at = i * n + i;
      diagonal[static_cast<std::size_t>(i)] = row_sums(pa + at, pb + at, 1);
      right[static_cast<std::size_t>(i)] = row_sums(pa + at + 1, pb + at + 1, n - i - 1);
    }
  });
  Sums total;
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    total.sum += diagonal[i].sum + 2 * right[i].sum;
    total.absolute += diagonal[i].absolute + 2 * right[i].absolute;
  }
  return total;
}

at::Tensor row_norms(const ConstMatrix& m) { return at::linalg_vector_norm(widened(m, 1), 2, {1}); }

}  // namespace

std::optional<double> gram_sum_squares(const Expression& G, GramCache& cache) {
  if (G.terms.empty() || has_dense(G) || tokens_of(G) * (G.in + G.out) >= G.in * G.out) return std::nullopt;
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  ScopedPurpose purpose(Purpose::workspace);
  Left left(G);
  SymmetricProducts products;
  at::Tensor dY_dYt = left.dY.defined() ? products.add(left.dY) : at::Tensor();
  GramCache right = right_gram(G, cache, products);
  products.run();
  cache = std::move(right);
  Sums s = product_sums(left.gram(dY_dYt), cache.RRt);
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
