#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/emulator/fiber.h"
#include "tests/emulator/machine.h"

// What the files of the machine share: the state of one running block.
namespace forge::emulator {

constexpr std::uint32_t kSharedBase = 1024;       // address of the dynamic buffer in the shared window
constexpr std::size_t kSharedLimit = 227 * 1024;  // of a block on sm_90
constexpr std::size_t kLineBytes = 128;           // granularity of the access tracking
constexpr std::size_t kCanaryBytes = 1024;        // behind the dynamic buffer
constexpr std::size_t kRegistersPerSM = 64 * 1024;
constexpr float kPoison = __builtin_nanf("0x3eada");  // in registers that may not be read

struct Random {
  std::uint64_t state;
  std::uint64_t next() {  // splitmix64
    std::uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }
};

// A byte address with bits 4.. XOR bits 7..: the one pattern that TMA writes and wgmma reads.
inline std::uint32_t swizzle_address(std::uint32_t address, int bits) {
  return address ^ ((address >> 3) & (((1u << bits) - 1) << 4));
}

enum class Wait { nothing, warp_collective, mbarrier, named_barrier, wgmma_group, cp_async_group };

// What all lanes of a warp do together.
enum class Collective {
  warp_sync,
  shuffle,
  barrier_sync,
  barrier_arrive,
  set_max_registers,
  ldmatrix,
  mma,
  wgmma,
  fence,
  commit,
  wait
};
constexpr const char* kCollectiveNames[] = {"__syncwarp",  "shfl.sync",          "bar.sync",        "bar.arrive",
                                            "setmaxnreg",  "ldmatrix",           "mma.sync",        "wgmma.mma_async",
                                            "wgmma.fence", "wgmma.commit_group", "wgmma.wait_group"};

struct Warp;

struct Thread {
  Fiber fiber;
  int id = 0, lane = 0;
  Warp* warp = nullptr;
  bool done = false;
  Wait wait = Wait::nothing;
  std::uint64_t wait_a = 0, wait_b = 0;
  std::uint32_t result = 0;         // of a shuffle
  int epoch = 0;                    // how many block barriers it has passed
  std::vector<int> copies_pending;  // of each committed cp.async group; the last entry is still open
};

// One fragment (64 × n, this warp's 16 rows) between its first wgmma and the wait that makes it readable.
struct Accumulator {
  int n = 0, pending = 0;
  std::array<float*, 32> registers{};
  std::vector<float> value;  // [16][n]
};

struct MmaOp {
  std::uint64_t desc_a, desc_b;
  bool accumulate, executed;
  int group;
  std::shared_ptr<Accumulator> accumulator;
  std::vector<std::uint32_t> lines;  // of shared memory that it reads
};

struct Warp {
  int id = 0;
  std::vector<Thread*> lanes, ready;
  std::uint64_t priority = 0;
  int max_registers = 0;
  // The collective in progress.
  int arrived = 0;
  Collective op{};
  std::uint64_t key = 0;
  std::array<std::uint32_t, 32> value{};
  std::array<int, 32> source{};
  std::array<const void*, 32> row{};              // of ldmatrix
  std::array<std::uint32_t*, 32> matrices{};      // its results
  std::array<const std::uint32_t*, 32> a{}, b{};  // of mma.sync
  std::array<float*, 32> pointer{};
  // wgmma.
  std::deque<MmaOp> mma;
  std::map<float*, std::shared_ptr<Accumulator>> accumulators;
  int group_open = 0;  // number of the group that is not committed yet
  std::size_t mma_issued = 0;
  bool fenced = false;
};

struct MBarrier {
  int index = 0;
  std::uint32_t expected = 0, pending = 0;
  std::int64_t tx = 0;
  std::uint64_t phase = 0;
  std::vector<Thread*> waiters;
  int init_thread = -1, init_epoch = 0;  // other threads may use it after the next block barrier
  bool fenced = false;                   // fence.mbarrier_init was executed
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  std::vector<Warp*> waiters;
};

// Eight rows of a box, which land together.
struct TmaPiece {
  TensorMap map;
  std::uint32_t dst;  // of the whole box
  int x, y;
  std::uint32_t row, rows;
  std::uint64_t* bar;
};

struct Copy {
  Thread* thread;
  std::size_t group;
  void* dst;
  const void* src;
  int bytes;
};

class Machine {
 public:
  Machine(const Schedule& schedule, Outcome& out, std::uint64_t seed)
      : schedule_(schedule), out_(out), random_{seed}, redraw_interval_(std::size_t{16} << random_.below(14)) {}

  // False where it ends in a deadlock.
  bool run(int threads, std::size_t shared_bytes, const std::function<void()>& kernel);

  // ---- scheduler.cpp
  Thread& self() { return *current_; }
  void violation(const std::string& text);
  void maybe_yield();
  void block(Wait kind, std::uint64_t a = 0, std::uint64_t b = 0);
  void wake(Thread& thread);
  void wake(Warp& warp) {
    for (Thread* t : warp.lanes) wake(*t);
  }
  // All lanes must come to the same instruction with the same operands; the last one performs it. `complete` returns
  // false when the whole warp has to stay blocked, as the last lane then is (someone else wakes it).
  template <class F>
  void collective(Collective op, std::uint64_t key, F&& complete) {
    Thread& t = self();
    Warp& w = *t.warp;
    if (!arrive_at(op, key)) return;
    if (!complete(w)) {
      for (Thread* lane : w.lanes) lane->wait = t.wait, lane->wait_a = t.wait_a, lane->wait_b = t.wait_b;
      t.fiber.suspend();
      return;
    }
    for (Thread* lane : w.lanes)
      if (lane != &t) wake(*lane);
    maybe_yield();
  }

  // ---- shared_memory.cpp
  void* shared() { return shared_; }
  std::uint32_t address_of(const void* p);
  std::size_t line_of(std::uint32_t address) const { return (address - kSharedBase) / kLineBytes; }
  bool in_shared(std::uint32_t address, std::size_t bytes) const {
    return address >= kSharedBase && address + bytes <= kSharedBase + shared_bytes_;
  }
  std::byte* at(std::uint32_t address) { return shared_ + (address - kSharedBase); }

  // ---- barriers.cpp
  void init_mbarrier(std::uint64_t* bar, std::uint32_t count);
  void fence_mbarriers();
  MBarrier& mbarrier(std::uint64_t* bar, const char* user);
  void arrive(MBarrier& b, std::uint32_t tx_bytes);
  void complete_phase(MBarrier& b);
  // One warp arrives; true if that completes the barrier.
  bool arrive(int id, int threads, Warp& w);
  void wait_for_barrier(int id, Warp& w);

  // ---- tma.cpp, cp_async.cpp, wgmma.cpp
  void issue_tma(void* dst, const TensorMap& map, std::uint64_t* bar, int x, int y);
  void issue_copy(void* dst, const void* src, int bytes);
  void issue_mma(Warp& w, int n, std::uint64_t desc_a, std::uint64_t desc_b, bool accumulate);
  // True if at most `pending_groups` of the committed groups are incomplete. Then the others' operations are known to
  // be finished: their reads of shared memory end, and accumulators without further operations become readable.
  bool retire_mma(Warp& w, int pending_groups);

 private:
  bool step();
  void run_thread();
  void run_tma();
  void run_mma();
  void run_copy();
  bool arrive_at(Collective op, std::uint64_t key);
  void start(int threads, const std::function<void()>& kernel);
  void clear_shared(std::size_t bytes);
  void look_at_the_end();
  void look_at_shared();
  std::string describe_wait(const Thread& t) const;
  std::string describe_blocked() const;

  bool executable(const Warp& w, std::size_t i) const;
  void execute(Warp& w, MmaOp& op);
  std::vector<std::uint32_t> lines_read(const Warp& w, int n, std::uint64_t desc_a, std::uint64_t desc_b);
  void same_in_the_warpgroup(Warp& w, std::uint64_t record);
  Accumulator& open_accumulator(Warp& w, int n);
  float operand(std::uint64_t desc, int mn, int k);

  Schedule schedule_;
  Outcome& out_;
  Random random_;
  std::size_t redraw_interval_;  // steps between new warp priorities, on average
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::unique_ptr<Warp>> warps_;
  Thread* current_ = nullptr;
  int alive_ = 0;

  std::map<std::uint64_t*, MBarrier> mbarriers_;
  std::array<NamedBarrier, 16> named_{};
  std::vector<TmaPiece> tma_;
  std::vector<Copy> copies_;
  std::vector<Warp*> mma_warps_;                           // with operations not yet executed
  std::vector<std::vector<std::uint64_t>> warpgroup_log_;  // operands of every wgmma: the four warps must agree

  std::vector<std::byte> storage_;
  std::byte* shared_ = nullptr;
  std::size_t shared_bytes_ = 0;
  std::vector<std::uint8_t> line_written_;
  std::vector<int> line_landing_, line_reading_;  // TMA pieces in flight to it; wgmma reads not yet waited for
};

// The one that is running.
extern Machine* machine;

}  // namespace forge::emulator
