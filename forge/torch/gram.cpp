#include "forge/torch/gram.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "forge/torch/allocation.h"
#include "forge/torch/executor.h"
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

at::Tensor tensor_at(const void* data, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type,
                     at::Device device) {
  return at::for_blob(const_cast<void*>(data), sizes)
      .strides(strides)
      .options(at::TensorOptions(type).device(device))
      .target_device(device)
      .make_tensor();
}

// In a type whose products torch computes in fp32 at least; a view where m is of it. A GPU may be set to multiply fp32
// with the ten bits of TF32: these hold what has 16 bits, other numbers are multiplied in fp64.
at::Tensor widened(const ConstMatrix& m, float scale, at::Device device) {
  bool has_16_bits = m.dtype != DType::f32 && scale == 1;
  at::Tensor t = tensor_at(m.data, {m.rows, m.cols}, {m.stride, 1}, scalar_type_of(m.dtype), device);
  t = t.to(device.is_cpu() || has_16_bits ? at::kFloat : at::kDouble);
  return scale == 1 ? t : t.mul(scale);
}

at::Tensor index_of(const Rows& rows, at::Device device) {
  return tensor_at(rows.index, {rows.values.rows}, {1}, at::kLong, device);
}

at::Tensor stacked(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

// Products M Mᵀ, of which a CPU computes only what is on and above the diagonal: blocks of rows, all in one go, since
// one such product is too small to be worth waking threads for.
class SymmetricProducts {
 public:
  // M Mᵀ, there after run().
  at::Tensor add(at::Tensor M) {
    at::Tensor product = at::empty({M.size(0), M.size(0)}, M.options());
    bytes_ += static_cast<std::int64_t>(M.nbytes() + product.nbytes());
    products_.push_back({std::move(M), product});
    return product;
  }

  // Of the products and of all M, which may be copies.
  std::int64_t bytes() const { return bytes_; }

  void run() const {
    struct Block {
      const Product* product;
      std::int64_t begin, end;
    };
    std::vector<Block> blocks;
    for (const Product& p : products_) {
      if (!p.M.is_cpu()) {
        at::Tensor to = p.product;
        at::mm_out(to, p.M, p.M.t());
        continue;
      }
      // Equal parts of the triangle, of some 32 rows: fewer waste less of a product's speed, more waste less of the
      // triangle below.
      std::int64_t n = p.M.size(0), parts = std::max<std::int64_t>(1, n / 32);
      auto row = [&](std::int64_t i) {
        double rest = 1 - static_cast<double>(i) / static_cast<double>(parts);
        return static_cast<std::int64_t>(static_cast<double>(n) * (1 - std::sqrt(rest)));
      };
      for (std::int64_t i = 0; i < parts; ++i)
        if (row(i) < row(i + 1)) blocks.push_back({&p, row(i), row(i + 1)});
    }
    AtExecutor executor;
    parallel_tasks(executor, static_cast<std::int64_t>(blocks.size()), [&](std::int64_t i, int) {
      at::NoGradGuard no_grad;
      const auto& [p, first, last] = blocks[static_cast<std::size_t>(i)];
      at::Tensor to = p->product.slice(0, first, last).slice(1, first);
      at::mm_out(to, p->M.slice(0, first, last), p->M.slice(0, first).t());
    });
  }

 private:
  struct Product {
    at::Tensor M, product;
  };
  std::vector<Product> products_;
  std::int64_t bytes_ = 0;
};

// L of all Outer terms, and the rows and scales of all Rows terms.
struct Left {
  at::Tensor dY, row, scale;

  Left(const Expression& G, at::Device device) {
    std::vector<at::Tensor> outer, index, scales;
    for (const Term& term : G.terms) {
      if (const Outer* t = std::get_if<Outer>(&term)) {
        outer.push_back(widened(t->dY, t->scale, device));
      } else {
        const Rows& rows = std::get<Rows>(term);
        index.push_back(index_of(rows, device));
        scales.push_back(at::full({rows.values.rows}, rows.scale, at::TensorOptions(at::kFloat).device(device)));
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
GramCache right_gram(const Expression& G, at::Device device, const GramCache& cache, SymmetricProducts& products) {
  std::vector<const void*> key;
  std::vector<at::Tensor> parts;
  for (bool outer : {true, false})
    for (const Term& term : G.terms) {
      if (std::holds_alternative<Outer>(term) != outer) continue;
      key.push_back(right_of(term).data);
      parts.push_back(widened(right_of(term), 1, device));
    }
  if (cache.RRt.defined() && cache.key == key && cache.RRt.size(0) == tokens_of(G)) return cache;
  return {std::move(key), products.add(stacked(parts))};
}

struct ProductSums {
  double sum = 0, absolute = 0;
};

ProductSums row_sums(const float* a, const float* b, std::int64_t n) {
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

struct Pair {  // of symmetric matrices
  at::Tensor a, b;
};

// Rows [begin, end) of the upper triangles.
ProductSums triangle_sums(const Pair& pair, std::int64_t begin, std::int64_t end) {
  std::int64_t n = pair.a.size(0);
  const float *a = pair.a.const_data_ptr<float>(), *b = pair.b.const_data_ptr<float>();
  ProductSums total;
  for (std::int64_t i = begin; i < end; ++i) {
    std::int64_t at = i * n + i;
    ProductSums diagonal = row_sums(a + at, b + at, 1), right = row_sums(a + at + 1, b + at + 1, n - i - 1);
    total.sum += diagonal.sum + 2 * right.sum;
    total.absolute += diagonal.absolute + 2 * right.absolute;
  }
  return total;
}

// By torch, wherever they lie.
at::Tensor product_sums_by_torch(std::span<const Pair> pairs) {
  std::vector<at::Tensor> sums;
  for (const Pair& pair : pairs) {
    at::Tensor products = pair.a.to(at::kDouble).mul(pair.b);
    sums.push_back(products.sum());
    sums.push_back(products.abs_().sum());
  }
  return at::stack(sums).view({-1, 2});
}

// Σ a∘b and Σ |a∘b| of each pair, (pairs, 2) in fp64 and in an order that does not depend on the threads.
at::Tensor product_sums(std::span<const Pair> pairs) {
  if (!pairs[0].a.is_cpu()) return product_sums_by_torch(pairs);
  constexpr std::int64_t kRows = 128;  // of a task
  struct Part {
    std::size_t pair;
    std::int64_t begin;
    ProductSums sums;
  };
  std::vector<Part> parts;
  for (std::size_t i = 0; i < pairs.size(); ++i)
    for (std::int64_t row = 0; row < pairs[i].a.size(0); row += kRows) parts.push_back({i, row, {}});
  AtExecutor executor;
  parallel_tasks(executor, static_cast<std::int64_t>(parts.size()), [&](std::int64_t i, int) {
    Part& part = parts[static_cast<std::size_t>(i)];
    const Pair& pair = pairs[part.pair];
    part.sums = triangle_sums(pair, part.begin, std::min(part.begin + kRows, pair.a.size(0)));
  });
  at::Tensor totals = at::zeros({static_cast<std::int64_t>(pairs.size()), 2}, at::kDouble);
  auto* total = totals.mutable_data_ptr<double>();
  for (const Part& part : parts) {
    total[2 * part.pair] += part.sums.sum;
    total[2 * part.pair + 1] += part.sums.absolute;
  }
  return totals;
}

bool pays(const Expression& G) {
  return !G.terms.empty() && !has_dense(G) && tokens_of(G) * (G.in + G.out) < G.in * G.out;
}

// The gradients whose products are computed together.
class Batch {
 public:
  explicit Batch(at::Device device) : device_(device) {}

  void add(std::size_t index, const Expression& G, GramCache& cache) {
    Left left(G, device_);
    at::Tensor dY_dYt = left.dY.defined() ? products_.add(left.dY) : at::Tensor();
    cache = right_gram(G, device_, cache, products_);
    members_.push_back({index, std::move(left), dY_dYt, cache.RRt});
  }

  std::int64_t bytes() const { return products_.bytes(); }

  // Fills in the sums of its members.
  void run(std::span<std::optional<Known>> sums) const {
    if (members_.empty()) return;
    products_.run();
    std::vector<Pair> pairs;
    for (const Member& m : members_) pairs.push_back({m.left.gram(m.dY_dYt), m.RRt});
    at::Tensor found = product_sums(pairs), sum = found.select(1, 0), absolute = found.select(1, 1);
    constexpr double kEps = 0x1p-24;
    at::Tensor holds = sum.isfinite().logical_and_(absolute.mul(kEps).le(sum.mul(1e-6))).to(at::kFloat);
    for (std::size_t i = 0; i < members_.size(); ++i) {
      auto row = static_cast<std::int64_t>(i);
      sums[members_[i].index] = Known{sum[row], holds[row]};
    }
  }

 private:
  struct Member {
    std::size_t index;
    Left left;
    at::Tensor dY_dYt, RRt;
  };
  at::Device device_;
  SymmetricProducts products_;
  std::vector<Member> members_;
};

at::Tensor row_norms(const ConstMatrix& m, at::Device device) {
  return at::linalg_vector_norm(widened(m, 1, device), 2, {1}).to(at::kDouble);
}

}  // namespace

std::optional<Known> gram_sum_squares(const Expression& G, GramCache& cache, at::Device device) {
  return gram_sums_of_squares({&G, 1}, cache, device)[0];
}

std::vector<std::optional<Known>> gram_sums_of_squares(std::span<const Expression> gradients, GramCache& cache,
                                                       at::Device device) {
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  ScopedPurpose purpose(Purpose::workspace);
  constexpr std::int64_t kBatchBytes = 16 << 20;  // as much as a kernel's packed X
  std::vector<std::optional<Known>> sums(gradients.size());
  GramCache promised = cache;  // kept once it is there
  Batch batch(device);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (pays(gradients[i])) batch.add(i, gradients[i], promised);
    if (batch.bytes() >= kBatchBytes || i + 1 == gradients.size()) {
      batch.run(sums);
      batch = Batch(device);
    }
  }
  cache = std::move(promised);
  return sums;
}

std::optional<at::Tensor> partial_sum_bound(const Expression& G, at::Device device) {
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  ScopedPurpose purpose(Purpose::workspace);
  at::Tensor bound = at::zeros({}, at::TensorOptions(at::kDouble).device(device));
  for (const Term& term : G.terms) {
    if (const Outer* t = std::get_if<Outer>(&term))
      bound.add_(row_norms(t->dY, device).dot(row_norms(t->X, device)), std::abs(t->scale));
    else if (const Rows* t = std::get_if<Rows>(&term))
      bound.add_(row_norms(t->values, device).sum(), std::abs(t->scale));
    else
      return std::nullopt;
  }
  return bound;
}

}  // namespace forge
