#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "forge/gradient/terms.h"
#include "forge/torch/device_kernels.h"
#include "forge/torch/ledger.h"
#include "forge/torch/matrix_view.h"
#include "forge/torch/options.h"
#include "forge/torch/scale.h"

namespace forge {

// The gradient of one parameter as a value that is not multiplied out (gradient/terms.h), on tensors. A matrix
// parameter W (out, in) collects Outer, Rows and Dense terms; any other shape is seen as one row and collects Dense
// terms. All are on one device. Tensors are kept by reference; who changes one in place before it is consumed gets an
// Error. Several threads may call it: each call is one action. Who reads what a call returned by reference (terms,
// expression) holds lock() meanwhile.
class Gradient {
 public:
  // The ledger is kept informed of the bytes held; without one it has its own. What asks for the norms of all gradients
  // with one ledger finds those that were entered there.
  explicit Gradient(const at::Tensor& parameter, std::shared_ptr<Ledger> ledger = nullptr);
  Gradient(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device, std::shared_ptr<Ledger> ledger = nullptr);
  ~Gradient();
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;

  // Nobody else reads or changes a gradient with this ledger until the lock goes.
  using Lock = std::unique_lock<std::recursive_mutex>;
  Lock lock() const { return Lock(ledger_->gradients_in_use); }

  // s · dYᵀX. dY (T, out), X (T, in), fp32, bf16 or fp16, as values and D may be. What would pin a larger buffer or
  // has scattered rows is copied.
  void add_outer(const at::Tensor& dY, const at::Tensor& X);
  // Row index[t] receives values[t]. index (T) int64, values (T, in).
  void add_rows(const at::Tensor& index, const at::Tensor& values);
  // D of the parameter's shape.
  void add_dense(const at::Tensor& D);

  // Appends factor · other, term by term; nothing is copied. Of `other` a scale that is on a device becomes the host's;
  // one that is not finite multiplies it out.
  void add_(Gradient& other, double factor = 1);

  // G ← factor · G, the factor of all terms together kept in fp32: clipping, unscaling, averaging. Terms that arrive
  // later are not affected.
  void mul_(double factor);
  // A factor of one element; throws Error where it has another number. The host does not wait for a device's; what
  // divides it out again does: a term that arrives later, and adding this gradient to another.
  void mul_(const at::Tensor& factor);
  // G ← 0, which is a gradient: the update happens.
  void zero_();
  // Drops all terms; the scale is 1 again.
  void clear();
  // The same value as a gradient of its own. The terms are shared; a D that may still be written to is copied.
  std::shared_ptr<Gradient> clone();

  // True where there is no term: torch's `grad is None`, not a zero gradient.
  bool empty() const;
  std::size_t size() const;
  Scale scale() const;
  std::span<const Term> terms() const { return terms_; }
  // True where it is of a parameter of this shape on this device, as it was made for.
  bool is_of(const at::Tensor& parameter) const;

  // ‖G‖², one number in fp64 on the gradient's device, for which the host does not wait.
  // exact: by the chain. Otherwise by Gram matrices, Σ (dY dYᵀ)∘(X Xᵀ), where that is cheaper and not
  // near-cancelling. The second time it is asked in a row, of gradients with one ledger, it is found for all of them at
  // once: a norm over all weights asks each in turn, and one product alone leaves threads idle.
  at::Tensor sum_squares(bool exact) const;
  // Every element of G is a number and not infinite: one bool, likewise.
  at::Tensor finite() const;
  // G as a new tensor of the parameter's shape, fp32 unless said otherwise.
  at::Tensor materialize(at::ScalarType dtype = at::kFloat) const;
  // Where it is computed.
  Place place() const { return {device_, exact_}; }
  // Replaces all terms by one Dense term of this dtype. `reason` is what the report says of it.
  void collapse(at::ScalarType dtype = at::kFloat, const std::string& reason = "asked for");
  // Multiplies G out in the parameter's dtype and hands out the tensor itself: who writes to it, or to a view of it,
  // changes the gradient. From then on a term or a factor that arrives is worked into it at once, so that views see it.
  at::Tensor expose(const std::string& reason = "asked for");
  bool exposed() const;
  // The gradient has been applied and is gone: whatever asks for it is told so. clear() ends that.
  void spend();
  bool spent() const;

  // Bytes of the storages that the terms keep alive, each counted once.
  std::int64_t held_bytes() const;
  // Bytes of a dense gradient in the parameter's dtype.
  std::int64_t dense_bytes() const;
  // How many times terms were replaced by a Dense term since construction.
  std::int64_t collapses() const;

  void set_policy(Collapse policy, bool exact);
  bool exact() const { return exact_; }

  // The expression over the terms' memory, checked to be unchanged since it arrived. Valid until the next change.
  Expression expression() const;

 private:
  struct Kept {  // a tensor behind a term
    at::Tensor tensor;
    std::int64_t version;
    const void* memory;  // of its storage
    bool dense;
  };

  void check_matrix(const char* what, const at::Tensor& t, std::int64_t cols) const;
  void check_on_device(const char* what, const at::Tensor& t) const;
  at::TensorOptions options(at::ScalarType dtype) const { return at::TensorOptions(dtype).device(device_); }
  at::Tensor keepable(const at::Tensor& t) const;
  float next_scale();
  void append(const Term& term, at::ArrayRef<at::Tensor> behind);
  void hold(const at::Tensor& t, bool dense);
  void drop_terms();
  void replace_by(at::Tensor D, const std::string& reason);
  void multiply_out(const at::Tensor& D, const Scale& scale) const;
  void read_scale();
  at::Tensor new_dense(at::ScalarType dtype) const;
  bool is_unchanged(const Kept& kept) const;
  void check_unchanged() const;
  void check_not_spent() const;
  void follow_dense() const;
  at::Tensor find_sum_squares(bool exact) const;
  void note(const at::Tensor& finite) const;
  bool awaits_gram_sum() const;
  void find_gram_sums() const;

  std::vector<std::int64_t> sizes_;
  at::ScalarType dtype_;
  at::Device device_;
  Shape shape_;
  std::vector<Kept> kept_;
  mutable std::vector<Term> terms_;  // an exposed one's memory is followed
  at::Tensor dense_;                 // where defined: the first term, made by collapse
  HeldBytes held_;
  // Σ of squares of these terms, without the scale; within, none where only the chain can tell.
  mutable std::optional<std::optional<Known>> gram_sum_;
  std::shared_ptr<Ledger> ledger_;
  Scale scale_;
  Collapse policy_ = Collapse::automatic;
  bool exact_ = false;
  bool exposed_ = false, spent_ = false;
  std::int64_t collapses_ = 0;
};

// The gradient that the backward passes since the last zero_grad() have recorded for this parameter. Throws Error
// where no optimizer of this library holds the parameter.
Gradient& gradient(const at::Tensor& parameter);

}  // namespace forge
