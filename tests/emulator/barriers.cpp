#include "tests/emulator/state.h"

namespace forge::emulator {

void Machine::fence_mbarriers() {
  for (auto& [bar, state] : mbarriers_)
    if (state.init_thread == self().id) state.fenced = true;
}

MBarrier& Machine::mbarrier(std::uint64_t* bar, const char* user) {
  auto it = mbarriers_.find(bar);
  if (it != mbarriers_.end()) {
    const MBarrier& b = it->second;
    if (current_ && b.init_thread >= 0 && current_->id != b.init_thread && current_->epoch <= b.init_epoch)
      violation("mbarrier used by another thread before a barrier published its initialisation");
    return it->second;
  }
  violation(std::string(user) + " on an mbarrier that is not initialised");
  MBarrier& b = mbarriers_[bar];
  b.index = -1, b.expected = b.pending = 1, b.fenced = true;
  return b;
}

void Machine::arrive(MBarrier& b, std::uint32_t tx_bytes) {
  b.tx += tx_bytes;
  if (b.pending == 0)
    violation("more arrivals on an mbarrier phase than expected");
  else
    --b.pending;
  complete_phase(b);
}

// Where neither arrivals nor transaction bytes are outstanding.
void Machine::complete_phase(MBarrier& b) {
  if (b.pending != 0 || b.tx != 0) return;
  ++b.phase;
  b.pending = b.expected;
  for (Thread* t : b.waiters) wake(*t);
  b.waiters.clear();
}

bool Machine::arrive(int id, int threads, Warp& w) {
  NamedBarrier& b = named_[static_cast<std::size_t>(id)];
  if (b.arrived != 0 && b.threads != threads) violation("named barrier used with different thread counts");
  b.threads = threads;
  b.arrived += static_cast<int>(w.lanes.size());
  if (b.arrived > threads) violation("more arrivals on a named barrier than its thread count");
  if (b.arrived < threads) return false;
  b.arrived = 0;
  for (Warp* waiter : b.waiters) wake(*waiter);
  b.waiters.clear();
  return true;
}

void Machine::wait_for_barrier(int id, Warp& w) {
  named_[static_cast<std::size_t>(id)].waiters.push_back(&w);
  self().wait = Wait::named_barrier, self().wait_a = static_cast<std::uint64_t>(id);
}

void mbarrier_init(std::uint64_t* bar, std::uint32_t count) {
  machine->maybe_yield();
  machine->init_mbarrier(bar, count);
}

void mbarrier_init_fence() { machine->fence_mbarriers(); }

void mbarrier_arrive(std::uint64_t* bar) { mbarrier_arrive_expect_tx(bar, 0); }

void mbarrier_arrive_expect_tx(std::uint64_t* bar, std::uint32_t bytes) {
  machine->maybe_yield();
  machine->arrive(machine->mbarrier(bar, "arrive"), bytes);
}

// True once the phase of that parity has completed: the current, incomplete phase has the other parity.
void mbarrier_wait_parity(std::uint64_t* bar, std::uint32_t parity) {
  machine->maybe_yield();
  MBarrier& b = machine->mbarrier(bar, "wait");
  while ((b.phase & 1) == parity) {
    b.waiters.push_back(&machine->self());
    machine->block(Wait::mbarrier, reinterpret_cast<std::uint64_t>(bar), parity);
  }
}

namespace {

std::uint64_t key_of(int id, int threads) {
  return static_cast<std::uint64_t>(id) << 32 | static_cast<std::uint64_t>(threads);
}

}  // namespace

void barrier_sync(int id, int threads) {
  machine->collective(Collective::barrier_sync, key_of(id, threads), [&](Warp& w) {
    if (machine->arrive(id, threads, w)) return true;
    machine->wait_for_barrier(id, w);
    return false;
  });
  if (id == 0) ++machine->self().epoch;
}

void barrier_arrive(int id, int threads) {
  machine->collective(Collective::barrier_arrive, key_of(id, threads), [&](Warp& w) {
    machine->arrive(id, threads, w);
    return true;
  });
}

}  // namespace forge::emulator
