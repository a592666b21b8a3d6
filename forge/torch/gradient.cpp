#include "forge/torch/gradient.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>
#include <cmath>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/allocation.h"

namespace forge {
namespace {

std::int64_t version_of(const at::Tensor& t) { return t.is_inference() ? 0 : t._version(); }

// Who frees a storage (resize_(0)) changes no version.
const void* memory_of(const at::Tensor& t) { return has_memory(t) ? t.storage().data() : nullptr; }

}  // namespace

Gradient::Gradient(const at::Tensor& parameter, std::shared_ptr<Ledger> ledger)
    : Gradient(parameter.sizes(), parameter.scalar_type(), parameter.device(), std::move(ledger)) {
  check_stored("Gradient", "the parameter", parameter);
}

Gradient::Gradient(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device, std::shared_ptr<Ledger> ledger)
    : sizes_(sizes.vec()),
      dtype_(dtype),
      device_(device),
      shape_(matrix_shape(sizes)),
      ledger_(ledger ? std::move(ledger) : std::make_shared<Ledger>()) {}

// Without the lock, for which a thread that has the interpreter's must not wait: nobody else refers to this.
Gradient::~Gradient() {
  ledger_->note_dropped(this);
  drop_terms();
}

void Gradient::set_policy(Collapse policy, bool exact) {
  Lock held = lock();
  policy_ = policy;
  exact_ = exact;
}

// ---- Terms --------------------------------------------------------------------------------------------------------

void Gradient::check_on_device(const char* what, const at::Tensor& t) const {
  check(t.device() == device_, "Gradient: ", what, " is on ", t.device().str(), " and the parameter was on ",
        device_.str(), " when its optimizer was made; move the model first, and make the optimizer then");
}

void Gradient::check_matrix(const char* what, const at::Tensor& t, std::int64_t cols) const {
  check_operand("Gradient", what, t);
  check_on_device(what, t);
  check(t.dim() == 2 && t.size(1) == cols, "Gradient: ", what, " is ", t.sizes(), ", expected (T, ", cols, ")");
}

void Gradient::add_outer(const at::Tensor& dY, const at::Tensor& X) {
  Lock held = lock();
  check(sizes_.size() == 2, "Gradient: the parameter is ", at::IntArrayRef(sizes_), "; only a matrix takes dYᵀX");
  check_matrix("dY", dY, shape_.out);
  check_matrix("X", X, shape_.in);
  check(dY.size(0) == X.size(0), "Gradient: dY is ", dY.sizes(), " and X is ", X.sizes(), "; they need as many rows");
  std::array behind{keepable(dY), keepable(X)};
  Shape dY_shape{dY.size(0), shape_.out}, X_shape{X.size(0), shape_.in};
  append(Outer{as_matrix(behind[0], dY_shape), as_matrix(behind[1], X_shape), next_scale()}, behind);
}

void Gradient::add_rows(const at::Tensor& index, const at::Tensor& values) {
  Lock held = lock();
  check(sizes_.size() == 2, "Gradient: the parameter is ", at::IntArrayRef(sizes_), "; only a matrix takes rows");
  check_matrix("values", values, shape_.in);
  check(index.defined() && index.scalar_type() == at::kLong && index.dim() == 1 && index.size(0) == values.size(0),
        "Gradient: the index of rows must be int64 of shape (", values.size(0), "), got ", index.sizes(), " of ",
        index.scalar_type());
  check_on_device("the index of rows", index);
  std::array behind{keepable(index), keepable(values)};
  Shape shape{values.size(0), shape_.in};
  append(Rows{behind[0].const_data_ptr<std::int64_t>(), as_matrix(behind[1], shape), next_scale()}, behind);
}

void Gradient::add_dense(const at::Tensor& D) {
  Lock held = lock();
  check_operand("Gradient", "D", D);
  check_on_device("D", D);
  check(D.sizes() == sizes_, "Gradient: D is ", D.sizes(), ", expected ", at::IntArrayRef(sizes_));
  std::array behind{keepable(D)};
  append(Dense{as_matrix(behind[0], shape_), next_scale()}, behind);
}

void Gradient::add_(Gradient& other, double factor) {
  std::scoped_lock both(ledger_->gradients_in_use, other.ledger_->gradients_in_use);
  check(other.sizes_ == sizes_, "Gradient: a gradient of shape ", at::IntArrayRef(other.sizes_),
        " is added to one of shape ", at::IntArrayRef(sizes_));
  other.check_unchanged();
  other.read_scale();
  // Copies: a gradient may be added to itself.
  std::vector<Term> terms = other.terms_;
  std::vector<Kept> kept = other.kept_;
  at::Tensor writable = other.dense_;
  auto scale = static_cast<float>(other.scale_.read() * factor);
  auto behind = kept.begin();
  for (Term& term : terms) {
    std::vector<at::Tensor> tensors;
    tensors.push_back((behind++)->tensor);
    if (Dense* dense = std::get_if<Dense>(&term); !dense) {
      tensors.push_back((behind++)->tensor);
    } else if (writable.defined() && tensors[0].is_alias_of(writable)) {
      tensors[0] = new_dense(writable.scalar_type()).copy_(writable);
      dense->D = as_matrix(tensors[0], shape_);
    }
    std::visit([&](auto& t) { t.scale *= scale * next_scale(); }, term);
    append(term, tensors);
  }
}

void Gradient::zero_() {
  Lock held = lock();
  clear();
  std::array no_token{at::empty({0, shape_.out}, options(at::kFloat)), at::empty({0, shape_.in}, options(at::kFloat))};
  append(Outer{as_matrix(no_token[0], {0, shape_.out}), as_matrix(no_token[1], {0, shape_.in})}, no_token);
}

void Gradient::clear() {
  Lock held = lock();
  ledger_->note_dropped(this);
  drop_terms();
  scale_ = {};
  spent_ = false;
}

std::shared_ptr<Gradient> Gradient::clone() {
  Lock held = lock();
  check_not_spent();
  auto copy = std::make_shared<Gradient>(sizes_, dtype_, device_, ledger_);
  ledger_->enter(copy);
  copy->set_policy(policy_ == Collapse::always ? Collapse::never : policy_, exact_);
  copy->add_(*this);
  return copy;
}

// A contiguous tensor that keeps nothing but itself alive.
at::Tensor Gradient::keepable(const at::Tensor& t) const {
  bool pins_more = policy_ != Collapse::always && t.storage().nbytes() > t.nbytes();
  if (t.is_contiguous() && !pins_more) return t;
  ScopedPurpose purpose(Purpose::held_copy);
  return t.detach().clone(at::MemoryFormat::Contiguous);
}

void Gradient::append(const Term& term, at::ArrayRef<at::Tensor> behind) {
  check_not_spent();
  Expression alone = {shape_.out, shape_.in, {&term, 1}};
  if (device_.is_cpu())
    validate("Gradient", alone);
  else
    validate_shapes("Gradient", alone);
  if (terms_.size() >= kernels_of(device_.type()).most_terms()) collapse(at::kFloat, "as many terms as a kernel takes");
  terms_.push_back(term);
  gram_sum_.reset();
  if (exposed_) {
    multiply_out(dense_, {});
    terms_.pop_back();
    return;
  }
  if (policy_ == Collapse::always) return collapse(at::kFloat, "collapse: always");
  for (const at::Tensor& t : behind) hold(t, std::holds_alternative<Dense>(term));
  if (policy_ == Collapse::automatic && held_bytes() > dense_bytes())
    collapse(exact_ ? at::kFloat : dtype_, "terms outgrew the dense gradient");
}

void Gradient::hold(const at::Tensor& t, bool dense) {
  kept_.push_back({another_name(t), version_of(t), memory_of(t), dense});
  held_.hold(t);
  if (dense)
    ledger_->add_dense(sizes_.size() == 2, static_cast<std::int64_t>(t.nbytes()));
  else
    ledger_->hold(t);
}

void Gradient::drop_terms() {
  for (const Kept& kept : kept_) {
    held_.release(kept.tensor);
    if (kept.dense)
      ledger_->add_dense(sizes_.size() == 2, -static_cast<std::int64_t>(kept.tensor.nbytes()));
    else
      ledger_->release(kept.tensor);
  }
  kept_.clear();
  terms_.clear();
  gram_sum_.reset();
  dense_ = at::Tensor();
  exposed_ = false;
}

// ---- Multiplied out -----------------------------------------------------------------------------------------------

at::Tensor Gradient::new_dense(at::ScalarType dtype) const {
  ScopedPurpose purpose(sizes_.size() == 2 ? Purpose::dense_matrix : Purpose::dense_vector);
  return at::empty(sizes_, options(dtype));
}

at::Tensor Gradient::materialize(at::ScalarType dtype) const {
  Lock held = lock();
  at::Tensor D = new_dense(dtype);
  check_stored("Gradient", "the result", D);
  kernels_of(device_.type()).materialize(place(), as_matrix(D, shape_), expression());
  return D;
}

// D ← scale · the chain, whatever the gradient's own scale is.
void Gradient::multiply_out(const at::Tensor& D, const Scale& scale) const {
  kernels_of(device_.type()).materialize(place(), as_matrix(D, shape_), scale.of(expression()));
}

void Gradient::collapse(at::ScalarType dtype, const std::string& reason) {
  Lock held = lock();
  bool done = dense_.defined() && terms_.size() == 1 && dense_.scalar_type() == dtype;
  if (terms_.empty() || done || exposed_) return;
  // A chain of D's own dtype goes on where it stands; the scale stays outside, so that no bit of fp32 changes.
  at::Tensor D = dense_.defined() && dense_.scalar_type() == dtype ? dense_ : new_dense(dtype);
  multiply_out(D, {});
  replace_by(D, reason);
}

at::Tensor Gradient::expose(const std::string& reason) {
  Lock held = lock();
  check_not_spent();
  check(!terms_.empty(), "Gradient: there is no gradient to multiply out");
  if (exposed_) return dense_;
  bool in_place = dense_.defined() && dense_.scalar_type() == dtype_;
  at::Tensor D = in_place ? dense_ : new_dense(dtype_);
  if (!in_place || terms_.size() > 1 || !scale_.is_one()) multiply_out(D, scale_);
  replace_by(D, reason);
  scale_ = {};
  exposed_ = true;
  return dense_;
}

void Gradient::replace_by(at::Tensor D, const std::string& reason) {
  drop_terms();
  hold(D, /*dense=*/true);
  terms_.push_back(Dense{as_matrix(D, shape_)});
  dense_ = std::move(D);
  ++collapses_;
  ++ledger_->collapses[reason];
}

void Gradient::spend() {
  Lock held = lock();
  clear();
  spent_ = true;
}

// ---- Questions ----------------------------------------------------------------------------------------------------

bool Gradient::empty() const { return size() == 0; }

std::size_t Gradient::size() const {
  Lock held = lock();
  return terms_.size();
}

Scale Gradient::scale() const {
  Lock held = lock();
  return scale_;
}

bool Gradient::exposed() const {
  Lock held = lock();
  return exposed_;
}

bool Gradient::spent() const {
  Lock held = lock();
  return spent_;
}

std::int64_t Gradient::collapses() const {
  Lock held = lock();
  return collapses_;
}

bool Gradient::is_of(const at::Tensor& parameter) const {
  return parameter.sizes() == sizes_ && parameter.device() == device_;
}

std::int64_t Gradient::held_bytes() const {
  Lock held = lock();
  return held_.bytes().now();
}

std::int64_t Gradient::dense_bytes() const {
  return shape_.out * shape_.in * static_cast<std::int64_t>(c10::elementSize(dtype_));
}

bool Gradient::is_unchanged(const Kept& kept) const {
  if (exposed_) return true;
  bool there = kept.memory == memory_of(kept.tensor) && kept.tensor.storage().nbytes() >= kept.tensor.nbytes();
  return there && version_of(kept.tensor) == kept.version;
}

void Gradient::check_unchanged() const {
  for (const Kept& kept : kept_)
    check(is_unchanged(kept), "Gradient: a tensor of shape ", kept.tensor.sizes(),
          " that the gradient refers to was changed in place or freed after backward; clone it before that, or call "
          "step() first");
}

void Gradient::check_not_spent() const {
  check(!spent_, "the gradient of the parameter of shape ", at::IntArrayRef(sizes_),
        " was applied inside backward (unclipped, unscaled) and is gone; call step() and zero_grad() before the next "
        "backward, and to clip, scale, accumulate or read gradients use the schedule at_step");
}

// Users hold the tensor of an exposed gradient; share_memory_() moves its memory.
void Gradient::follow_dense() const {
  if (!exposed_) return;
  const at::Tensor& D = kept_.front().tensor;
  bool whole = dense_.is_alias_of(D) && dense_.sizes() == D.sizes() && D.storage().nbytes() >= D.nbytes();
  check(whole, "Gradient: the tensor that dense() gave out of a gradient of shape ", at::IntArrayRef(sizes_),
        " has been given other memory or another shape; assign such a tensor to the parameter's .grad instead");
  terms_.front() = Dense{as_matrix(D, shape_)};
}

Expression Gradient::expression() const {
  Lock held = lock();
  check_not_spent();
  check_unchanged();
  follow_dense();
  return scale_.of({shape_.out, shape_.in, terms_});
}

}  // namespace forge
