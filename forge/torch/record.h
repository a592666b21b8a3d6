#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/ledger.h"
#include "forge/torch/options.h"

namespace forge {

// What an optimizer knows about one parameter. Backward passes write their terms here; the parameter's AccumulateGrad
// node tells when its last use of a backward pass is done.
class Record : public std::enable_shared_from_this<Record> {
 public:
  // Enters the parameter in the registry for as long as the record lives. Throws Error where another record has it.
  // `backward_done` is called in in_backward once per backward pass, after the last use; it consumes the gradient.
  static std::shared_ptr<Record> make(const at::Tensor& parameter, const OptimizerOptions& options,
                                      std::shared_ptr<Ledger> ledger, std::function<void()> backward_done);
  ~Record();

  const at::Tensor& parameter() const { return parameter_; }
  Gradient& gradient() { return gradient_; }
  bool in_backward() const { return in_backward_; }
  bool exact() const { return exact_; }

  // From a backward pass: dY (T, out) and X (T, in), which is copied where it is the user's own and has to wait.
  void record_outer(const at::Tensor& dY, const at::Tensor& X, bool users_own_X);
  void record_rows(const at::Tensor& index, const at::Tensor& values);
  // True while autograd::grad asks for this parameter's gradient as a tensor, instead of accumulating it.
  bool is_captured() const;

  // in_backward: the parameter has been updated since the last step(). A second update raises.
  void set_updated(bool updated) { updated_ = updated; }

  // True where neither a term nor a .grad is there.
  bool empty() const { return gradient_.empty() && !parameter_.grad().defined(); }
  // Drops the terms and .grad.
  void reset();
  // Appends .grad to the terms, where there are both.
  void absorb_grad();
  // The ledger's figure for .grad is brought up to date.
  void note_grad();

 private:
  struct UseHook;

  Record(const at::Tensor& parameter, const OptimizerOptions& options, std::shared_ptr<Ledger> ledger,
         std::function<void()> backward_done);
  void watch_uses();
  void uses_done(const std::vector<at::Tensor>& arrived);
  void own_grad(const std::vector<at::Tensor>& arrived);
  void check_not_updated() const;

  at::Tensor parameter_;
  std::shared_ptr<Ledger> ledger_;
  Gradient gradient_;
  bool in_backward_, copies_users_X_, exact_;
  bool updated_ = false;
  std::int64_t grad_bytes_ = 0;
  std::function<void()> backward_done_;
  std::shared_ptr<const void> node_;  // keeps the AccumulateGrad node, whose tensor holds it weakly
  void* node_key_ = nullptr;
};

// The record of this parameter, or null.
std::shared_ptr<Record> find_record(const at::Tensor& parameter);

// The record that a use of this weight in a forward pass is to write to; null where autograd's ordinary path is taken:
// no optimizer holds it, no gradient is wanted, it is no leaf, has hooks, or a function transform or forward-mode
// differentiation is active.
std::shared_ptr<Record> record_for_use(const at::Tensor& weight);

// The gradient of a parameter as a whole: recorded terms first, then what autograd put into .grad. Where there are
// both, .grad has become a term. Valid until either changes.
class WholeGradient {
 public:
  // The record may be null: then .grad is all.
  WholeGradient(const at::Tensor& parameter, Record* record);

  bool empty() const { return recorded_ == nullptr && !dense_.defined(); }
  Expression expression() const;
  double sum_squares(bool exact, GramCache& cache) const;
  void mul_(double factor);

 private:
  at::Tensor grad_;  // .grad itself
  Gradient* recorded_ = nullptr;
  at::Tensor dense_;  // .grad, contiguous
  Shape shape_;
  Term term_;
};

}  // namespace forge
