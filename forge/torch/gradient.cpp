#include "forge/torch/gradient.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cmath>
#include <utility>

#include "forge/base/error.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/norm.h"
#include "forge/torch/allocation.h"
#include "forge/torch/executor.h"

namespace forge {
namespace {

std::int64_t version_of(const at::Tensor& t) { return t.is_inference() ? 0 : t._version(); }

void check_matrix(const char* what, const at::Tensor& t, std::int64_t cols) {
  check_operand("Gradient", what, t);
  check(t.dim() == 2 && t.size(1) == cols, "Gradient: ", what, " is ", t.sizes(), ", expected (T, ", cols, ")");
}

}  // namespace

Gradient::Gradient(const at::Tensor& parameter, std::shared_ptr<Ledger> ledger)
    : Gradient(parameter.sizes(), parameter.scalar_type(), std::move(ledger)) {
  check_operand("Gradient", "the parameter", parameter);
}

Gradient::Gradient(at::IntArrayRef sizes, at::ScalarType dtype, std::shared_ptr<Ledger> ledger)
    : sizes_(sizes.vec()), dtype_(dtype), shape_(matrix_shape(sizes)), ledger_(std::move(ledger)) {}

Gradient::~Gradient() { drop_terms(); }

void Gradient::set_policy(Collapse policy, bool exact) {
  policy_ = policy;
  exact_ = exact;
}

// ---- Terms --------------------------------------------------------------------------------------------------------

void Gradient::add_outer(const at::Tensor& dY, const at::Tensor& X) {
  check(sizes_.size() == 2, "Gradient: the parameter is ", at::IntArrayRef(sizes_), "; only a matrix takes dYᵀX");
  check_matrix("dY", dY, shape_.out);
  check_matrix("X", X, shape_.in);
  check(dY.size(0) == X.size(0), "Gradient: dY is ", dY.sizes(), " and X is ", X.sizes(), "; they need as many rows");
  std::array behind{keepable(dY), keepable(X)};
  Shape dY_shape{dY.size(0), shape_.out}, X_shape{X.size(0), shape_.in};
  append(Outer{as_matrix(behind[0], dY_shape), as_matrix(behind[1], X_shape), next_scale()}, behind);
}

void Gradient::add_rows(const at::Tensor& index, const at::Tensor& values) {
  check(sizes_.size() == 2, "Gradient: the parameter is ", at::IntArrayRef(sizes_), "; only a matrix takes rows");
  check_matrix("values", values, shape_.in);
  check(index.defined() && index.device().is_cpu() && index.scalar_type() == at::kLong && index.dim() == 1 &&
            index.size(0) == values.size(0),
        "Gradient: the index of rows must be int64 of shape (", values.size(0), ") on the CPU, got ", index.sizes(),
        " of ", index.scalar_type());
  std::array behind{keepable(index), keepable(values)};
  Shape shape{values.size(0), shape_.in};
  append(Rows{behind[0].const_data_ptr<std::int64_t>(), as_matrix(behind[1], shape), next_scale()}, behind);
}

void Gradient::add_dense(const at::Tensor& D) {
  check_operand("Gradient", "D", D);
  check(D.sizes() == sizes_, "Gradient: D is ", D.sizes(), ", expected ", at::IntArrayRef(sizes_));
  std::array behind{keepable(D)};
  append(Dense{as_matrix(behind[0], shape_), next_scale()}, behind);
}

void Gradient::mul_(double factor) { scale_ = static_cast<float>(scale_ * factor); }

void Gradient::clear() {
  drop_terms();
  scale_ = 1;
}

// A contiguous tensor that keeps nothing but itself alive.
at::Tensor Gradient::keepable(const at::Tensor& t) const {
  bool pins_more = policy_ != Collapse::always && t.storage().nbytes() > t.nbytes();
  if (t.is_contiguous() && !pins_more) return t;
  ScopedPurpose purpose(Purpose::held_copy);
  return t.detach().clone(at::MemoryFormat::Contiguous);
}

// What a term that arrives now is multiplied by, so that the scale of all leaves it as it is.
float Gradient::next_scale() {
  if (terms_.empty()) scale_ = 1;
  if (scale_ == 1) return 1;
  float inverse = 1 / scale_;
  if (std::isnormal(inverse)) return inverse;
  // 0, Inf or NaN cannot be divided out again: it goes into the terms that it belongs to.
  replace_by(materialize(at::kFloat));
  scale_ = 1;
  return 1;
}

void Gradient::append(const Term& term, at::ArrayRef<at::Tensor> behind) {
  validate("Gradient", {shape_.out, shape_.in, {&term, 1}});
  terms_.push_back(term);
  if (policy_ == Collapse::always) return collapse(at::kFloat);
  for (const at::Tensor& t : behind) hold(t, std::holds_alternative<Dense>(term));
  if (policy_ == Collapse::automatic && held_bytes() > dense_bytes()) collapse(exact_ ? at::kFloat : dtype_);
}

void Gradient::hold(const at::Tensor& t, bool dense) {
  kept_.push_back({t, version_of(t), dense});
  held_.hold(t);
  if (!ledger_) return;
  if (dense)
    ledger_->dense(sizes_.size() == 2).add(static_cast<std::int64_t>(t.nbytes()));
  else
    ledger_->terms.hold(t);
}

void Gradient::drop_terms() {
  for (const Kept& kept : kept_) {
    held_.release(kept.tensor);
    if (!ledger_) continue;
    if (kept.dense)
      ledger_->dense(sizes_.size() == 2).add(-static_cast<std::int64_t>(kept.tensor.nbytes()));
    else
      ledger_->terms.release(kept.tensor);
  }
  kept_.clear();
  terms_.clear();
  dense_ = at::Tensor();
}

// ---- Multiplied out -----------------------------------------------------------------------------------------------

at::Tensor Gradient::new_dense(at::ScalarType dtype) const {
  ScopedPurpose purpose(sizes_.size() == 2 ? Purpose::dense_matrix : Purpose::dense_vector);
  return at::empty(sizes_, dtype);
}

at::Tensor Gradient::materialize(at::ScalarType dtype) const {
  at::Tensor D = new_dense(dtype);
  check_operand("Gradient", "the result", D);
  Expression G = expression();
  forge::materialize(as_matrix(D, shape_), G, torch_context(G));
  return D;
}

void Gradient::collapse(at::ScalarType dtype) {
  bool done = dense_.defined() && terms_.size() == 1 && dense_.scalar_type() == dtype;
  if (terms_.empty() || done) return;
  // An fp32 chain goes on where it stands; the scale stays outside, so that no bit changes.
  bool in_place = dense_.defined() && dense_.scalar_type() == at::kFloat && dtype == at::kFloat;
  at::Tensor D = in_place ? dense_ : new_dense(dtype);
  Expression G = expression();
  G.scale = 1;
  forge::materialize(as_matrix(D, shape_), G, torch_context(G));
  replace_by(D);
}

void Gradient::replace_by(at::Tensor D) {
  drop_terms();
  hold(D, /*dense=*/true);
  terms_.push_back(Dense{as_matrix(D, shape_)});
  dense_ = std::move(D);
  ++collapses_;
}

// ---- Questions ----------------------------------------------------------------------------------------------------

double Gradient::sum_squares(bool exact) const {
  GramCache cache;
  return sum_squares(exact, cache);
}

double Gradient::sum_squares(bool exact, GramCache& cache) const {
  Expression G = expression();
  if (!exact)
    if (auto sum = gram_sum_squares(G, cache)) return *sum;
  return forge::sum_squares(G, torch_context(G));
}

bool Gradient::finite() const {
  Expression G = expression();
  return std::isfinite(forge::sum_squares(G, torch_context(G)));
}

std::int64_t Gradient::held_bytes() const { return held_.bytes().now(); }

std::int64_t Gradient::dense_bytes() const {
  return shape_.out * shape_.in * static_cast<std::int64_t>(c10::elementSize(dtype_));
}

void Gradient::check_unchanged() const {
  for (const Kept& kept : kept_)
    check(version_of(kept.tensor) == kept.version, "Gradient: a tensor of shape ", kept.tensor.sizes(),
          " that the gradient refers to was changed in place after backward; clone it before it is changed, or call "
          "step() first");
}

Expression Gradient::expression() const {
  check_unchanged();
  return {shape_.out, shape_.in, terms_, scale_};
}

}  // namespace forge
