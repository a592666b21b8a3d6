#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/ledger.h"
#include "forge/torch/options.h"

namespace forge {

// What an optimizer knows about one parameter. Backward passes write their terms here, in any number of threads; a hook
// on the parameter tells when its last use of a backward pass is done.
//
// Where the gradient is: from C++ in the record itself. With handles (from Python) and at_step, .grad holds a handle,
// and who replaces or drops .grad replaces or drops the gradient; in_backward it is in the record while backward runs,
// and afterwards .grad holds a spent handle, which says so to whoever asks.
//
// Shape, type, layout and device are the parameter's own at each moment: a user may give it other memory (.data).
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
  // Another `backward_done`.
  void serve(std::function<void()> backward_done);
  // The optimizer goes: uses are recorded no more, and what a backward pass has recorded becomes .grad when it is done
  // with the parameter.
  void retire();

  const at::Tensor& parameter() const { return parameter_; }
  bool in_backward() const { return settings_.schedule == Schedule::in_backward; }
  bool exact() const { return settings_.exact; }

  // False: every use takes autograd's ordinary path, until this says otherwise.
  void set_recording(bool recording) { recording_ = recording; }
  bool recording() const { return recording_ && served_; }

  // The gradient so far; null where there is none or .grad is an ordinary tensor and all there is.
  std::shared_ptr<Gradient> current() const;

  // From a backward pass: dY (T, out) and X (T, in), each copied where somebody else may write to it and it has to
  // wait.
  struct Factor {
    at::Tensor tensor;
    bool may_change = false;
  };
  // False where this use has to hand its weight gradient to autograd as a tensor: autograd::grad asks for it, the
  // weight has gradient hooks, .grad is an ordinary tensor to which autograd adds, or nothing is recorded any more.
  bool record_outer(const Factor& dY, const Factor& X);
  // Rows of `padding_idx` (-1: none) are left out, whatever they hold. The index is copied: it is nearly always the
  // user's own buffer.
  bool record_rows(const at::Tensor& index, const Factor& values, std::int64_t padding_idx);
  // Why the gradient that arrives next will be an ordinary one.
  void expect_ordinary(const char* reason);
  // A step applies an ordinary gradient: counted here where autograd has not brought it.
  void note_applied_ordinary();
  // How often an ordinary gradient has arrived or was applied, by reason.
  const std::map<std::string, std::int64_t>& ordinary() const { return ordinary_; }

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
  // in_backward: the terms become .grad, an ordinary one; without any, a spent handle goes.
  void release();
  // Appends an ordinary .grad to the terms, where there are both.
  void absorb_grad();
  // The ledger's figure for .grad is brought up to date.
  void note_grad();

 private:
  class UseHook;
  class Access;

  Record(const at::Tensor& parameter, const Settings& settings, std::shared_ptr<Ledger> ledger,
         std::function<void()> backward_done);
  bool grad_is_handle() const { return settings_.handles && !in_backward(); }
  std::shared_ptr<Gradient> new_gradient() const;
  Gradient& open();
  at::Tensor keepable(const Factor& factor) const;
  bool takes_terms();
  const char* why_ordinary() const;
  std::vector<at::Tensor> uses_done(std::vector<at::Tensor> arrived);
  void update_now(const at::Tensor& arrived);
  void note_arrival(const at::Tensor& arrived);
  void count_ordinary(const char* reason);
  void check_not_updated() const;
  void check_not_awaited() const;
  bool has_hooks() const;
  bool is_asked_for() const;
  void hand_over();
  void note_grad_bytes(const at::Tensor& ordinary);

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
  std::atomic<bool> recording_ = true, served_ = true;  // by an optimizer; read without the lock
  const char* expected_ = nullptr;
  bool ordinary_arrived_ = false;  // since the last step
  std::map<std::string, std::int64_t> ordinary_;
  std::int64_t grad_bytes_ = 0;
  std::function<void()> backward_done_;
  std::shared_ptr<Record> itself_;  // once retired with terms: until the backward pass is done
};

// False where no optimizer holds any parameter.
bool any_record();
// The record of this parameter, or null.
std::shared_ptr<Record> find_record(const at::Tensor& parameter);

// The record that a use of this leaf in a forward pass is to write to; null where autograd's ordinary path is taken:
// no optimizer holds it, no gradient is wanted, it is not contiguous, or a function transform or forward-mode
// differentiation is active.
std::shared_ptr<Record> record_for_use(const at::Tensor& leaf);

}  // namespace forge
