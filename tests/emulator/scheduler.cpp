#include <sstream>

#include "tests/emulator/device_memory.h"
#include "tests/emulator/state.h"

namespace forge::emulator {

Dim3 thread_idx, block_idx, block_dim, grid_dim;
Machine* machine = nullptr;

namespace {

std::vector<std::unique_ptr<Thread>> thread_pool;  // stacks are used again by the next block

}  // namespace

void Machine::violation(const std::string& text) {
  auto& all = out_.violations;
  if (std::find(all.begin(), all.end(), text) == all.end()) all.push_back(text);
}

void Machine::block(Wait kind, std::uint64_t a, std::uint64_t b) {
  Thread& t = self();
  t.wait = kind, t.wait_a = a, t.wait_b = b;
  t.fiber.suspend();
}

void Machine::wake(Thread& thread) {
  if (thread.wait == Wait::nothing) return;
  thread.wait = Wait::nothing;
  thread.warp->ready.push_back(&thread);
}

void Machine::maybe_yield() {
  if (random_.below(4) != 0) return;
  Thread& t = self();
  t.warp->ready.push_back(&t);
  t.fiber.suspend();
}

// True for the last lane; the others return when they are woken.
bool Machine::arrive_at(Collective op, std::uint64_t key) {
  Warp& w = *self().warp;
  if (w.arrived == 0) {
    w.op = op, w.key = key;
  } else if (w.op != op || w.key != key) {
    violation(std::string("warp diverged: some lanes at ") + kCollectiveNames[static_cast<int>(w.op)] + ", others at " +
              kCollectiveNames[static_cast<int>(op)] + " or with other operands");
  }
  if (++w.arrived < static_cast<int>(w.lanes.size())) {
    block(Wait::warp_collective, static_cast<std::uint64_t>(op));
    return false;
  }
  w.arrived = 0;
  return true;
}

// False where nothing can go on.
bool Machine::step() {
  struct Engine {
    Pace pace;
    bool busy;
    void (Machine::*run)();
  };
  const Engine engines[] = {{schedule_.tma, !tma_.empty(), &Machine::run_tma},
                            {schedule_.mma, !mma_warps_.empty(), &Machine::run_mma},
                            {schedule_.cp_async, !copies_.empty(), &Machine::run_copy}};
  for (const Engine& e : engines)
    if (e.busy && e.pace == Pace::eager) return (this->*e.run)(), true;
  for (const Engine& e : engines)
    if (e.busy && e.pace == Pace::random && random_.below(16) == 0) return (this->*e.run)(), true;
  if (std::any_of(warps_.begin(), warps_.end(), [](const auto& w) { return !w->ready.empty(); }))
    return run_thread(), true;
  for (Pace pace : {Pace::random, Pace::lazy}) {
    std::vector<const Engine*> busy;
    for (const Engine& e : engines)
      if (e.busy && e.pace == pace) busy.push_back(&e);
    if (!busy.empty()) return (this->*busy[random_.below(busy.size())]->run)(), true;
  }
  return false;
}

void Machine::run_thread() {
  Warp* choice = nullptr;
  if (schedule_.priorities) {
    if (random_.below(redraw_interval_) == 0)
      for (auto& w : warps_) w->priority = random_.next();
    for (auto& w : warps_)
      if (!w->ready.empty() && (!choice || w->priority > choice->priority)) choice = w.get();
  } else {
    std::size_t seen = 0;
    for (auto& w : warps_)
      if (!w->ready.empty() && random_.below(++seen) == 0) choice = w.get();
  }
  std::vector<Thread*>& ready = choice->ready;
  std::swap(ready[random_.below(ready.size())], ready.back());
  Thread* t = ready.back();
  ready.pop_back();
  current_ = t;
  thread_idx = {static_cast<unsigned>(t->id), 0, 0};
  t->fiber.resume();
  current_ = nullptr;
  if (t->done) --alive_;
}

void Machine::start(int threads, const std::function<void()>& kernel) {
  warpgroup_log_.resize(static_cast<std::size_t>(threads + 127) / 128);
  while (thread_pool.size() < static_cast<std::size_t>(threads)) thread_pool.push_back(std::make_unique<Thread>());
  threads_.swap(thread_pool);
  for (int id = 0; id < threads; ++id) {
    if (id % 32 == 0) {
      warps_.push_back(std::make_unique<Warp>());
      warps_.back()->id = id / 32;
      warps_.back()->priority = random_.next();
    }
    Thread& t = *threads_[static_cast<std::size_t>(id)];
    t.id = id, t.lane = id % 32, t.warp = warps_.back().get();
    t.done = false, t.wait = Wait::nothing, t.epoch = 0;
    t.copies_pending.assign(1, 0);
    t.warp->lanes.push_back(&t);
    t.warp->ready.push_back(&t);
    t.fiber.reset([&kernel, &t] {
      kernel();
      t.done = true;
    });
  }
  alive_ = threads;
}

bool Machine::run(int threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  clear_shared(shared_bytes);
  start(threads, kernel);
  while (alive_ > 0 && step()) {
  }
  if (alive_ > 0)
    out_.deadlock = describe_blocked();
  else
    look_at_the_end();
  threads_.swap(thread_pool);
  return alive_ == 0;
}

void Machine::look_at_the_end() {
  for (auto& w : warps_)
    if (!w->mma.empty()) violation("block ended with wgmma operations never waited for");
  if (!tma_.empty()) violation("block ended with TMA loads in flight");
  if (!copies_.empty()) violation("block ended with cp.async copies in flight");
  look_at_shared();
  std::size_t registers = 0;
  for (auto& w : warps_) registers += static_cast<std::size_t>(w->max_registers) * 32;
  if (registers > kRegistersPerSM) violation("setmaxnreg asks for more registers than the SM has");
  for (std::size_t i = 0; i < named_.size(); ++i)
    if (named_[i].arrived != 0)
      out_.notes.push_back("barrier " + std::to_string(i) + " left with " + std::to_string(named_[i].arrived) + " of " +
                           std::to_string(named_[i].threads) + " arrivals at the end of a block");
}

std::string Machine::describe_wait(const Thread& t) const {
  std::ostringstream s;
  switch (t.wait) {
    case Wait::mbarrier: {
      const MBarrier& b = mbarriers_.at(reinterpret_cast<std::uint64_t*>(t.wait_a));
      s << "mbarrier " << b.index << " parity " << t.wait_b << " (phase " << b.phase << ", pending " << b.pending
        << " of " << b.expected << ", tx " << b.tx << ")";
      break;
    }
    case Wait::named_barrier:
      s << "bar.sync " << t.wait_a << " (" << named_[t.wait_a].arrived << " of " << named_[t.wait_a].threads << ")";
      break;
    case Wait::warp_collective:
      s << kCollectiveNames[t.wait_a] << ", waiting for other lanes";
      break;
    case Wait::wgmma_group:
      s << "wgmma.wait_group " << t.wait_a;
      break;
    case Wait::cp_async_group:
      s << "cp.async.wait_group " << t.wait_a;
      break;
    case Wait::nothing:
      s << "ready";
      break;
  }
  return s.str();
}

std::string Machine::describe_blocked() const {
  std::map<std::string, std::vector<int>> groups;
  for (const auto& w : warps_)
    for (const Thread* t : w->lanes)
      if (!t->done) groups[describe_wait(*t)].push_back(t->id);
  std::ostringstream out;
  for (const auto& [where, ids] : groups) {
    out << "    " << ids.size() << " threads (warps";
    int last = -1;
    for (int id : ids)
      if (id / 32 != last) out << ' ' << (last = id / 32);
    out << ") at " << where << '\n';
  }
  return out.str();
}

Schedule Schedule::from_seed(std::uint64_t seed) {
  struct Row {
    Pace tma, mma;
    bool priorities;
  };
  using enum Pace;
  constexpr Row kTable[] = {{random, random, false}, {eager, lazy, true},    {lazy, eager, false}, {eager, eager, true},
                            {lazy, lazy, false},     {random, random, true}, {eager, lazy, false}, {lazy, eager, true}};
  Random r{seed};
  const Row& row = kTable[seed >= 1 && seed <= 8 ? seed - 1 : r.below(8)];
  return {seed, row.tma, row.mma, row.tma, row.priorities};
}

std::string Schedule::describe() const {
  constexpr const char* kNames[] = {"eager", "random", "lazy"};
  return "seed " + std::to_string(seed) + " (loads " + kNames[static_cast<int>(tma)] + ", mma " +
         kNames[static_cast<int>(mma)] + (priorities ? ", priorities)" : ")");
}

std::string Outcome::describe() const {
  std::string text = deadlock.empty() ? "" : "deadlock:\n" + deadlock;
  for (const std::string& v : violations) text += "rule broken: " + v + "\n";
  return text;
}

Outcome launch(Dim3 grid, Dim3 block, std::size_t shared_bytes, const Schedule& schedule,
               const std::function<void()>& kernel) {
  Outcome out;
  DeviceMemoryAccess access;
  grid_dim = grid, block_dim = block;
  std::vector<Dim3> blocks;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, 0});
  Random random{schedule.seed};
  for (std::size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random.below(i)]);
  for (Dim3 b : blocks) {
    block_idx = b;
    Machine m(schedule, out, random.next());
    machine = &m;
    bool ended = m.run(static_cast<int>(block.x), shared_bytes, kernel);
    machine = nullptr;
    if (!ended) break;
  }
  return out;
}

void set_max_registers(int n) {
  machine->collective(Collective::set_max_registers, static_cast<std::uint64_t>(n), [&](Warp& w) {
    w.max_registers = n;
    return true;
  });
}

void warp_sync() {
  machine->collective(Collective::warp_sync, 0, [](Warp&) { return true; });
}

std::uint32_t warp_shuffle(std::uint32_t value, int source_lane) {
  Thread& t = machine->self();
  auto lane = static_cast<std::size_t>(t.lane);
  t.warp->value[lane] = value;
  t.warp->source[lane] = source_lane;
  machine->collective(Collective::shuffle, 0, [](Warp& w) {
    for (Thread* to : w.lanes)
      to->result = w.value[static_cast<std::size_t>(w.source[static_cast<std::size_t>(to->lane)])];
    return true;
  });
  return t.result;
}

}  // namespace forge::emulator
