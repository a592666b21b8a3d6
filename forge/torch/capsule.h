#pragma once

#include <ATen/core/ivalue.h>

#include <memory>
#include <utility>

#include "forge/torch/record.h"

namespace forge {

// A record in a backward node's saved data. Weak: an optimizer that has gone does not come back, and the weight does
// not go through save_for_backward, whose hooks may hand out another tensor.
struct RecordCapsule final : torch::CustomClassHolder {
  std::weak_ptr<Record> record;
  explicit RecordCapsule(std::weak_ptr<Record> r) : record(std::move(r)) {}
};

inline c10::IValue to_capsule(const std::shared_ptr<Record>& record) {
  return c10::IValue::make_capsule(c10::make_intrusive<RecordCapsule>(record));
}

inline std::shared_ptr<Record> from_capsule(const c10::IValue& value) {
  return c10::static_intrusive_pointer_cast<RecordCapsule>(value.toCapsule())->record.lock();
}

}  // namespace forge
