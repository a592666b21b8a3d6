#include <bit>
#include <cstring>

#include "tests/emulator/state.h"

namespace forge::emulator {
namespace {

constexpr int kK = 16;  // tokens of one wgmma on elements of 16 bits
constexpr int kWarpRows = 16;

float bf16_to_float(std::uint16_t x) { return std::bit_cast<float>(std::uint32_t{x} << 16); }

// Canonical MN-major layouts of a shared-memory matrix descriptor; in units of T = 8 elements, 16 bytes:
//   swizzle of 128, 64 or 32 bytes: ((T,W,m),(8,k)) : ((1,T,LBO),(W*T,SBO)), W = 8, 4 or 2
//   none:                           ((T,1,m),(8,k)) : ((1,T,SBO),(T,LBO))
std::uint32_t operand_address(std::uint64_t desc, int mn, int k) {
  auto field = [&](int from) { return static_cast<std::uint32_t>(desc >> from & 0x3FFF) << 4; };
  std::uint32_t start = field(0), lbo = field(16), sbo = field(32);
  auto at_mn = static_cast<std::uint32_t>(mn), at_k = static_cast<std::uint32_t>(k);
  int mode = static_cast<int>(desc >> 62);
  if (mode == 0) return start + at_mn % 8 * 2 + at_mn / 8 * sbo + at_k % 8 * 16 + at_k / 8 * lbo;
  int bits = 4 - mode;
  std::uint32_t w = 1u << bits;
  std::uint32_t address =
      start + at_mn % 8 * 2 + at_mn / 8 % w * 16 + at_mn / 8 / w * lbo + at_k % 8 * w * 16 + at_k / 8 * sbo;
  return swizzle_address(address, bits);
}

// Where register v of a lane lies in its warp's 16 rows of n columns.
std::size_t fragment_place(int lane, int v, int n) {
  return static_cast<std::size_t>((lane / 4 + 8 * (v / 2 % 2)) * n + 8 * (v / 4) + 2 * (lane % 4) + v % 2);
}

}  // namespace

float Machine::operand(std::uint64_t desc, int mn, int k) {
  std::uint32_t address = operand_address(desc, mn, k);
  if (!in_shared(address, 2)) return kPoison;
  std::uint16_t bits;
  std::memcpy(&bits, at(address), 2);
  return bf16_to_float(bits);
}

// All four warps of a warpgroup must execute the same wgmma.
void Machine::same_in_the_warpgroup(Warp& w, std::uint64_t record) {
  std::vector<std::uint64_t>& log = warpgroup_log_[static_cast<std::size_t>(w.id) / 4];
  if (w.mma_issued == log.size())
    log.push_back(record);
  else if (log[w.mma_issued] != record)
    violation("warps of a warpgroup execute different wgmma operations");
  ++w.mma_issued;
}

// Takes the registers, which are not readable before the wait.
Accumulator& Machine::open_accumulator(Warp& w, int n) {
  auto& accumulator = w.accumulators[w.pointer[0]];
  if (accumulator) return *accumulator;
  accumulator = std::make_shared<Accumulator>();
  accumulator->n = n, accumulator->registers = w.pointer;
  accumulator->value.resize(static_cast<std::size_t>(kWarpRows * n));
  for (int lane = 0; lane < 32; ++lane)
    for (int v = 0; v < n / 2; ++v) {
      float& reg = w.pointer[static_cast<std::size_t>(lane)][v];
      accumulator->value[fragment_place(lane, v, n)] = reg;
      reg = kPoison;
    }
  return *accumulator;
}

std::vector<std::uint32_t> Machine::lines_read(const Warp& w, int n, std::uint64_t desc_a, std::uint64_t desc_b) {
  std::vector<std::uint32_t> lines;
  auto read = [&](std::uint32_t address) {
    if (!in_shared(address, 16)) violation("wgmma operand outside shared memory"), address = kSharedBase;
    lines.push_back(static_cast<std::uint32_t>(line_of(address)));
  };
  for (int k = 0; k < kK; ++k) {
    for (int mn = 0; mn < kWarpRows; mn += 8) read(operand_address(desc_a, kWarpRows * (w.id % 4) + mn, k));
    for (int mn = 0; mn < n; mn += 8) read(operand_address(desc_b, mn, k));
  }
  std::sort(lines.begin(), lines.end());
  lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
  return lines;
}

void Machine::issue_mma(Warp& w, int n, std::uint64_t desc_a, std::uint64_t desc_b, bool accumulate) {
  if (!w.fenced) violation("wgmma without wgmma.fence after the accumulators were accessed (or as the first wgmma)");
  for (std::uint64_t desc : {desc_a, desc_b}) {
    if ((desc >> 49 & 7) != 0) violation("matrix base offset is not zero");
    if (desc >> 62 == 1 && (desc << 4) % 1024 != 0)
      violation("128-byte-swizzled operand does not start on a 1024-byte boundary");
  }
  same_in_the_warpgroup(w, (desc_a * 0x9E3779B97F4A7C15u) ^ std::rotl(desc_b, 20) ^
                               (static_cast<std::uint64_t>(n) << 1) ^ static_cast<std::uint64_t>(accumulate));
  ++open_accumulator(w, n).pending;
  MmaOp op{
      desc_a, desc_b, accumulate, false, w.group_open, w.accumulators[w.pointer[0]], lines_read(w, n, desc_a, desc_b)};
  for (std::uint32_t line : op.lines) {
    if (line_landing_[line]) violation("wgmma issued on a stage that a TMA load is still filling");
    if (!line_written_[line]) violation("wgmma issued on shared memory that was never written");
    ++line_reading_[line];
  }
  w.mma.push_back(std::move(op));
  if (std::find(mma_warps_.begin(), mma_warps_.end(), &w) == mma_warps_.end()) mma_warps_.push_back(&w);
}

// Operations on one accumulator execute in order, others in any order.
bool Machine::executable(const Warp& w, std::size_t i) const {
  if (w.mma[i].executed) return false;
  for (std::size_t j = 0; j < i; ++j)
    if (!w.mma[j].executed && w.mma[j].accumulator == w.mma[i].accumulator) return false;
  return true;
}

void Machine::run_mma() {
  std::size_t which = random_.below(mma_warps_.size());
  Warp& w = *mma_warps_[which];
  std::vector<std::size_t> candidates;
  for (std::size_t i = 0; i < w.mma.size(); ++i)
    if (executable(w, i)) candidates.push_back(i);
  execute(w, w.mma[candidates[random_.below(candidates.size())]]);
  if (std::all_of(w.mma.begin(), w.mma.end(), [](const MmaOp& op) { return op.executed; }))
    mma_warps_.erase(mma_warps_.begin() + static_cast<std::ptrdiff_t>(which));
  // Wake the warp if it waits for a group that is now complete.
  const Thread& t = *w.lanes[0];
  if (t.wait == Wait::wgmma_group && retire_mma(w, static_cast<int>(t.wait_a))) wake(w);
}

// This warp's quarter of m64nNk16: 16 rows of A, all of B.
void Machine::execute(Warp& w, MmaOp& op) {
  int n = op.accumulator->n, row0 = kWarpRows * (w.id % 4);
  std::vector<float>& c = op.accumulator->value;
  if (!op.accumulate) std::fill(c.begin(), c.end(), 0.f);
  std::vector<float> b(static_cast<std::size_t>(n));
  for (int k = 0; k < kK; ++k) {
    for (int j = 0; j < n; ++j) b[static_cast<std::size_t>(j)] = operand(op.desc_b, j, k);
    for (int i = 0; i < kWarpRows; ++i) {
      float a = operand(op.desc_a, row0 + i, k);
      for (int j = 0; j < n; ++j) c[static_cast<std::size_t>(i * n + j)] += a * b[static_cast<std::size_t>(j)];
    }
  }
  op.executed = true;
}

bool Machine::retire_mma(Warp& w, int pending_groups) {
  int limit = w.group_open - pending_groups;  // groups below this one must be complete
  for (const MmaOp& op : w.mma)
    if (op.group < limit && !op.executed) return false;
  while (!w.mma.empty() && w.mma.front().group < limit) {
    MmaOp& op = w.mma.front();
    for (std::uint32_t line : op.lines) --line_reading_[line];
    Accumulator& accumulator = *op.accumulator;
    if (--accumulator.pending == 0) {
      for (int lane = 0; lane < 32; ++lane)
        for (int v = 0; v < accumulator.n / 2; ++v)
          accumulator.registers[static_cast<std::size_t>(lane)][v] =
              accumulator.value[fragment_place(lane, v, accumulator.n)];
      w.accumulators.erase(accumulator.registers[0]);
    }
    w.mma.pop_front();
  }
  w.fenced = false;  // the registers may be accessed from here on
  return true;
}

void wgmma_mn_major(float* d, int n, std::uint64_t desc_a, std::uint64_t desc_b, bool accumulate) {
  Thread& t = machine->self();
  t.warp->pointer[static_cast<std::size_t>(t.lane)] = d;
  machine->collective(Collective::wgmma, desc_a ^ std::rotl(desc_b, 32) ^ static_cast<std::uint64_t>(accumulate),
                      [&](Warp& w) {
                        machine->issue_mma(w, n, desc_a, desc_b, accumulate);
                        return true;
                      });
}

void wgmma_fence() {
  machine->collective(Collective::fence, 0, [](Warp& w) { return w.fenced = true; });
}

void wgmma_commit() {
  machine->collective(Collective::commit, 0, [](Warp& w) {
    ++w.group_open;
    return true;
  });
}

void wgmma_wait(int pending) {
  machine->collective(Collective::wait, static_cast<std::uint64_t>(pending), [&](Warp& w) {
    if (machine->retire_mma(w, pending)) return true;
    Thread& t = machine->self();
    t.wait = Wait::wgmma_group, t.wait_a = static_cast<std::uint64_t>(pending);
    return false;
  });
}

}  // namespace forge::emulator
