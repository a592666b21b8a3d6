#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "forge/base/error.h"
#include "forge/torch/ledger.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/record.h"

namespace forge {

// An optimizer without its rule. The records' hooks point here, so its address stays. What is virtual is told apart by
// the rule, and by where state and options live: here, or with a host in another language.
struct Optimizer::Impl {
  // handles: gradients stand in .grad (handle.h), and other optimizers may hold the same parameters.
  explicit Impl(OptimizerOptions o, bool handles = false);
  virtual ~Impl() = default;

  // The constants of parameter i's next update.
  virtual RuleStep next_rule(std::size_t i) const = 0;
  // Brings state[i] up to date with the host before it is read, and the host with state[i] after an update.
  virtual void load(std::size_t) {}
  virtual void store(std::size_t) {}
  // A zero moment for parameter i.
  virtual at::Tensor new_moment(std::size_t i);
  virtual WholeGradient gradient_of(std::size_t i) { return {state[i].parameter, records[i].get()}; }

  void hold(const at::Tensor& parameter);
  void update(std::size_t i);
  void apply(std::size_t i, const Expression& G);
  void step();

  OptimizerOptions options;
  bool handles;
  std::vector<ParameterState> state;
  std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>();
  std::vector<std::shared_ptr<Record>> records;  // one for each state
};

// What a rule adds: its groups. The rule is told the parameter's state before the update.
template <class Options, RuleStep (*prepare)(const Options&, const ParameterState&)>
struct GroupedImpl final : Optimizer::Impl {
  GroupedImpl(std::vector<ParamGroup<Options>> g, OptimizerOptions o) : Impl(std::move(o)), groups(std::move(g)) {
    for (std::size_t i = 0; i < groups.size(); ++i) {
      prepare(groups[i].options, {});  // refuses options out of range now, not at the first step
      for (const at::Tensor& parameter : groups[i].params) {
        hold(parameter);
        group_of.push_back(i);
      }
    }
    check(!state.empty(), "Optimizer: there is no parameter");
  }

  RuleStep next_rule(std::size_t i) const override { return prepare(groups[group_of[i]].options, state[i]); }

  std::vector<ParamGroup<Options>> groups;
  std::vector<std::size_t> group_of;
};

}  // namespace forge
