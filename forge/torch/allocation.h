#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace forge {

// What the torch layer wants memory for. Everything that it did not name is `other`: activations, the user's tensors.
enum class Purpose : std::uint8_t {
  other,
  workspace,
  held_copy,     // a dY, X or index copied because the original could not be kept
  dense_matrix,  // the dense gradient of a 2-D parameter
  dense_vector,  // the dense gradient of another parameter
  state,         // a moment
  direction,     // what one weight's update makes orthogonal, and what that takes
};

const char* name_of(Purpose purpose);

// Names the purpose of this thread's allocations while it lives. The innermost wins.
class ScopedPurpose {
 public:
  explicit ScopedPurpose(Purpose purpose);
  ~ScopedPurpose();
  ScopedPurpose(const ScopedPurpose&) = delete;
  ScopedPurpose& operator=(const ScopedPurpose&) = delete;

 private:
  Purpose outer_;
};

struct Allocation {
  std::size_t bytes;
  Purpose purpose;
};

// Counts what torch's CPU allocator hands out while it lives, on all threads. A tensor from before is not counted, nor
// is its end: live bytes are those allocated in the scope and not freed yet. Recorders may be nested; the innermost
// ends first. An allocation costs two atomic additions and a small block, so it may stay on while timing.
class AllocationRecorder {
 public:
  // Allocations of at least `threshold` bytes are listed one by one.
  explicit AllocationRecorder(std::size_t threshold = std::size_t{1} << 20);
  ~AllocationRecorder();
  AllocationRecorder(const AllocationRecorder&) = delete;
  AllocationRecorder& operator=(const AllocationRecorder&) = delete;

  std::int64_t live_bytes() const;
  std::int64_t peak_bytes() const;
  // The peak starts again from what is live.
  void reset_peak();
  // In order of arrival.
  std::vector<Allocation> allocations() const;

 private:
  struct Counters;
  class RecordingAllocator;

  std::shared_ptr<Counters> counters_;
  RecordingAllocator* allocator_;
};

}  // namespace forge
