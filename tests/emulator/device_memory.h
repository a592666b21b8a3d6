#pragma once

#include <cstddef>

// Memory of the emulated device: what runs there may use it, the host may not. A host that looks at it is stopped as
// it would be by a GPU's, with a segmentation fault.
namespace forge::emulator {

// Aligned as cudaMalloc's, 256 bytes. Freed blocks are handed out again. Throws std::bad_alloc beyond 1 GiB.
void* allocate_device_memory(std::size_t bytes);
void free_device_memory(void* p);

// While one lives, device memory is there: a kernel runs, or a copy. Any thread may have one.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  ~DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
};

}  // namespace forge::emulator
