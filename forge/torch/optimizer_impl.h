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

// An optimizer without its rule. The records' hooks point here, so its address stays.
struct Optimizer::Impl {
  explicit Impl(OptimizerOptions o);
  virtual ~Impl() = default;

  // The constants of parameter i's next update.
  virtual RuleStep next_rule(std::size_t i) const = 0;

  void hold(const at::Tensor& parameter);
  void update(std::size_t i);
  void apply(std::size_t i, const Expression& G);
  void step();

  OptimizerOptions options;
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
