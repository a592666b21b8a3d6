#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "forge/base/error.h"
#include "forge/torch/ledger.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/record.h"
#include "forge/torch/whole_gradient.h"

namespace forge {

class UpdatesTogether;

// An optimizer without its rule. The records' hooks point here, so its address stays. What is virtual is told apart by
// the rule, and by where state and options live: here, or with a host in another language.
struct Optimizer::Impl {
  // handles: gradients stand in .grad (handle.h), and other optimizers may hold the same parameters.
  explicit Impl(OptimizerOptions o, bool handles = false);
  virtual ~Impl() { retire(); }
  // No backward pass calls this optimizer from now on. Waits for those that do.
  void retire();
  // Each record calls for the update of its parameter.
  void serve();

  // The constants of parameter i's next update as the options have them, and where the one after it stands.
  virtual RuleStep next_rule(std::size_t i) const = 0;
  virtual Progress next_progress(std::size_t i) const = 0;
  // Brings state[i] up to date with the host before it is read, and the host with state[i] after an update.
  virtual void load(std::size_t) {}
  virtual void store(std::size_t) {}
  // A zero moment for parameter i.
  virtual StoredTensor new_moment(std::size_t i, const Moment& moment);
  // Keeps the host, and so this, alive while a backward pass updates; null where the host is ending already.
  virtual std::shared_ptr<const void> in_use() const {
    return {std::shared_ptr<const void>(), this};  // who owns this waits for backward passes
  }
  // False where the host has taken the parameter away, and this does not know yet.
  virtual bool holds(std::size_t) const { return true; }
  virtual WholeGradient gradient_of(std::size_t i) { return {state[i].parameter, records[i].get()}; }

  // name: of the parameter, for its noise. rule: which its options choose. record: one that it had here before; null:
  // a new one.
  void hold(const at::Tensor& parameter, const std::string& name, std::optional<Format> state_format,
            const RuleInfo& rule, std::shared_ptr<Record> record = nullptr);
  void update(std::size_t i);
  // The next update's rule for this parameter.
  RuleStep rule_for(std::size_t i) const;
  // Everything that an update by this rule needs memory for besides its gradient; throws Error where the parameter is
  // no longer what an update can be written to.
  void prepare(std::size_t i, const RuleStep& rule);
  // After prepare(i). rule: rule_for(i). together: where small updates may wait.
  void apply(std::size_t i, const Expression& G, const RuleStep& rule, UpdatesTogether* together = nullptr);
  // factor: of all gradients, for this step alone, one number on any device; undefined: none.
  void step(const at::Tensor& factor = {});
  // Adds what the counts say, of the weight in `format` and of these moments, to what is reported.
  void add_rounding(std::size_t i, Format format, std::span<const Moment> moments,
                    std::span<const RoundingCount> counts);

  // What a new moment is kept in, and the weight.
  Format state_format_of(std::size_t i) const;
  Format weight_format_of(std::size_t i) const;

  OptimizerOptions options;
  bool handles;
  std::vector<ParameterState> state;
  std::vector<std::optional<Format>> state_formats;  // asked for by the groups
  std::vector<bool> embeddings;                      // known to be one; others are told by their uses
  std::vector<std::uint32_t> names;                  // hashed
  std::map<RoundedMatrix, RoundingCount> rounding;
  std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>();
  std::vector<std::shared_ptr<Record>> records;  // one for each state; null where .grad is all there is
};

}  // namespace forge
