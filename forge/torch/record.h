#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/ledger.h"
#include "forge/torch/options.h"

namespace forge {

// What an optimizer knows about one parameter. Backward passes write their terms here; the parameter's AccumulateGrad
// node tells when its last use of a backward pass is done.
//
// Where the gradient is: from C++ in the record itself. With handles (from Python) and at_step, .grad holds a handle,
// and who replaces or drops .grad replaces or drops the gradient; in_backward it is in the record while backward runs,
// and afterwards .grad holds a spent handle, which says so to whoever asks.
class Record : public std::enable_shared_from_this<Record> {
 public:
  struct Settings {
    Schedule schedule = Schedule::at_step;
    Collapse collapse = Collapse::automatic;
    bool exact = false;
    bool handles = false;
  };

  // Enters the parameter in the registry for as long as the record lives. Where another record has it: without handles
  // that throws Error, with handles the new one takes over.
  // `backward_done` is called in in_backward once per backward pass, after the last use; it consumes the gradient.
  static std::shared_ptr<Record> make(const at::Tensor& parameter, const Settings& settings,
                                      std::shared_ptr<Ledger> ledger, std::function<void()> backward_done);
  ~Record();

  const at::Tensor& parameter() const { return parameter_; }
  bool in_backward() const { return settings_.schedule == Schedule::in_backward; }
  bool exact() const { return settings_.exact; }

  // The gradient so far; null where there is none or .grad is an ordinary tensor and all there is.
  std::shared_ptr<Gradient> current() const;
  // True where a use has to hand its weight gradient to autograd as a tensor: autograd::grad asks for it, the weight
  // has gradient hooks, or .grad is an ordinary tensor to which autograd adds.
  bool wants_tensor() const;
  // From a backward pass: dY (T, out) and X (T, in), each copied where it is the user's own and has to wait.
  struct Factor {
    at::Tensor tensor;
    bool users_own = false;
  };
  void record_outer(const Factor& dY, const Factor& X);
  // Rows of `padding_idx` (-1: none) are left out, whatever they hold. The index is copied: it is nearly always the
  // user's own buffer.
  void record_rows(const at::Tensor& index, const at::Tensor& values, std::int64_t padding_idx);

  // Rows have been recorded: the weight is an embedding's.
  bool has_had_rows() const { return has_had_rows_; }
  // in_backward: the parameter has been updated since the last step() or zero_grad(). A second update raises.
  bool is_updated() const;
  // Hears of uses from now on; again and again is fine. A parameter that does not require a gradient is not watched.
  void watch_uses();

  // After step(): the next backward may update again.
  void end_step();
  // Drops the terms and .grad.
  void reset();
  // The gradient has been applied in backward.
  void spend();
  // Appends an ordinary .grad to the terms, where there are both.
  void absorb_grad();
  // The ledger's figure for .grad is brought up to date.
  void note_grad();

 private:
  struct UseHook;

  Record(const at::Tensor& parameter, const Settings& settings, std::shared_ptr<Ledger> ledger,
         std::function<void()> backward_done);
  bool grad_is_handle() const { return settings_.handles && !in_backward(); }
  std::shared_ptr<Gradient> new_gradient() const;
  Gradient& open();
  at::Tensor keepable(const Factor& factor) const;
  void uses_done(const std::vector<at::Tensor>& arrived);
  void own_grad(const std::vector<at::Tensor>& arrived);
  void check_not_updated() const;
  void check_not_awaited() const;
  bool has_hooks() const;

  at::Tensor parameter_;
  Settings settings_;
  std::shared_ptr<Ledger> ledger_;
  std::shared_ptr<Gradient> own_;  // where .grad is no handle
  // The handle last put into .grad, known again without asking the other language.
  std::optional<c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> handle_;
  std::weak_ptr<Gradient> behind_handle_;
  at::Tensor spent_handle_;
  std::shared_ptr<Gradient> spent_;  // behind it
  bool updated_ = false, has_had_rows_ = false;
  std::int64_t grad_bytes_ = 0;
  std::function<void()> backward_done_;
  std::shared_ptr<const void> node_;  // keeps the AccumulateGrad node, whose tensor holds it weakly
  void* node_key_ = nullptr;
};

// The record of this parameter, or null.
std::shared_ptr<Record> find_record(const at::Tensor& parameter);

// The record that a use of this weight in a forward pass is to write to; null where autograd's ordinary path is taken:
// no optimizer holds it, no gradient is wanted, it is no leaf, or a function transform or forward-mode differentiation
// is active.
std::shared_ptr<Record> record_for_use(const at::Tensor& weight);

// The gradient of a parameter as a whole: recorded terms first, then what autograd put into .grad. Where there are
// both, .grad has become a term. Valid until either changes.
class WholeGradient {
 public:
  // The record may be null: then .grad is all.
  WholeGradient(const at::Tensor& parameter, Record* record);
  // An ordinary gradient of a parameter of this shape, or an undefined tensor.
  WholeGradient(const at::Tensor& parameter, at::Tensor grad);

  bool empty() const { return recorded_ == nullptr && !dense_.defined(); }
  Expression expression() const;
  Scale scale() const { return recorded_ ? recorded_->scale() : Scale(); }
  // As of a Gradient. There is one.
  at::Tensor sum_squares(bool exact) const;
  void mul_(const at::Tensor& factor);

 private:
  void take(const at::Tensor& parameter);

  at::Tensor grad_;  // .grad itself
  std::shared_ptr<Gradient> recorded_;
  at::Tensor dense_;  // .grad, in the parameter's layout
  Shape shape_;
  Term term_;
};

}  // namespace forge
