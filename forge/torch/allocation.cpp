#include "forge/torch/allocation.h"

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "forge/base/error.h"

namespace forge {
namespace {

thread_local Purpose current_purpose = Purpose::other;

}  // namespace

const char* name_of(Purpose purpose) {
  static constexpr const char* kNames[] = {"other",        "workspace", "held copy", "dense matrix",
                                           "dense vector", "state",     "direction"};
  return kNames[static_cast<std::size_t>(purpose)];
}

ScopedPurpose::ScopedPurpose(Purpose purpose) : outer_(std::exchange(current_purpose, purpose)) {}
ScopedPurpose::~ScopedPurpose() { current_purpose = outer_; }

struct AllocationRecorder::Counters {
  const std::size_t threshold;
  std::atomic<std::int64_t> live{0}, peak{0};
  std::atomic<bool> recording{true};
  std::mutex mutex;  // guards the list
  std::vector<Allocation> list;

  explicit Counters(std::size_t t) : threshold(t) {}
  void add(std::size_t bytes) {
    std::int64_t now = live.fetch_add(static_cast<std::int64_t>(bytes)) + static_cast<std::int64_t>(bytes);
    std::int64_t seen = peak.load();
    while (now > seen && !peak.compare_exchange_weak(seen, now)) continue;
    if (bytes < threshold) return;
    std::scoped_lock lock(mutex);
    list.push_back({bytes, current_purpose});
  }
  void remove(std::size_t bytes) { live -= static_cast<std::int64_t>(bytes); }
};

// Storages point at their allocator for ever, so it is never destroyed: once its recorder has gone it only passes on.
class AllocationRecorder::RecordingAllocator final : public c10::Allocator {
 public:
  RecordingAllocator(c10::Allocator* next, std::shared_ptr<Counters> counters)
      : next_(next), counters_(std::move(counters)) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    c10::DataPtr inner = next_->allocate(bytes);
    if (!counters_->recording || bytes == 0) return inner;
    counters_->add(bytes);
    void* data = inner.get();
    c10::Device device = inner.device();
    return {data, new Block{std::move(inner), bytes, counters_}, &Block::end, device};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { next_->copy_data(to, from, bytes); }

  c10::Allocator* next() const { return next_; }

 private:
  // An allocation that may outlive the recorder.
  struct Block {
    c10::DataPtr data;
    std::size_t bytes;
    std::shared_ptr<Counters> counters;

    static void end(void* self) {
      auto* block = static_cast<Block*>(self);
      block->counters->remove(block->bytes);
      delete block;
    }
  };

  c10::Allocator* next_;
  std::shared_ptr<Counters> counters_;
};

AllocationRecorder::AllocationRecorder(std::size_t threshold)
    : counters_(std::make_shared<Counters>(threshold)),
      allocator_(new RecordingAllocator(c10::GetCPUAllocator(), counters_)) {
  c10::SetCPUAllocator(allocator_);
  check(c10::GetCPUAllocator() == allocator_,
        "AllocationRecorder: another CPU allocator of a higher priority is installed");
}

AllocationRecorder::~AllocationRecorder() {
  counters_->recording = false;
  c10::SetCPUAllocator(allocator_->next());
}

std::int64_t AllocationRecorder::live_bytes() const { return counters_->live; }
std::int64_t AllocationRecorder::peak_bytes() const { return counters_->peak; }
void AllocationRecorder::reset_peak() { counters_->peak = counters_->live.load(); }

std::vector<Allocation> AllocationRecorder::allocations() const {
  std::scoped_lock lock(counters_->mutex);
  return counters_->list;
}

}  // namespace forge
