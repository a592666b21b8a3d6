#include "tests/emulator/device_memory.h"

#include <sys/mman.h>

#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace forge::emulator {
namespace {

constexpr std::size_t kAlignment = 256, kCapacity = std::size_t{1} << 30;

// One mapping, so that it is protected in one call.
class DeviceMemory {
 public:
  static DeviceMemory& get() {
    static auto* memory = new DeviceMemory;  // never destroyed: tensors may outlive static variables
    return *memory;
  }

  void* allocate(std::size_t bytes) {
    std::scoped_lock lock(mutex_);
    std::size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    std::vector<char*>& free = free_[size];
    char* p = free.empty() ? base_ + used_ : free.back();
    if (free.empty() && (used_ += size) > kCapacity) throw std::bad_alloc();
    if (!free.empty()) free.pop_back();
    sizes_[p] = size;
    return p;
  }
  void release(void* p) {
    std::scoped_lock lock(mutex_);
    auto found = sizes_.find(static_cast<char*>(p));
    free_[found->second].push_back(found->first);
    sizes_.erase(found);
  }
  void open() {
    std::scoped_lock lock(mutex_);
    if (accesses_++ == 0) mprotect(base_, kCapacity, PROT_READ | PROT_WRITE);
  }
  void close() {
    std::scoped_lock lock(mutex_);
    if (--accesses_ == 0) mprotect(base_, kCapacity, PROT_NONE);
  }

 private:
  DeviceMemory() {
    void* all = mmap(nullptr, kCapacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(all);
  }

  std::mutex mutex_;
  char* base_;
  std::size_t used_ = 0;
  int accesses_ = 0;
  std::map<std::size_t, std::vector<char*>> free_;  // by size
  std::map<char*, std::size_t> sizes_;
};

}  // namespace

void* allocate_device_memory(std::size_t bytes) { return DeviceMemory::get().allocate(bytes); }
void free_device_memory(void* p) { DeviceMemory::get().release(p); }

DeviceMemoryAccess::DeviceMemoryAccess() { DeviceMemory::get().open(); }
DeviceMemoryAccess::~DeviceMemoryAccess() { DeviceMemory::get().close(); }

}  // namespace forge::emulator
