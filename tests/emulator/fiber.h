#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace forge::emulator {

// A stackful coroutine: ucontext makes the stack, setjmp and longjmp switch (no system call per switch).
class Fiber {
 public:
  void reset(std::function<void()> body) {
    if (!stack_) stack_ = std::make_unique<char[]>(kStackBytes);
    body_ = std::move(body);
    started_ = false;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    auto self = reinterpret_cast<std::uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::entry), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
  }

  // Runs until the fiber suspends itself or ends.
  [[gnu::noinline]] void resume() {
    if (_setjmp(caller_) != 0) return;
    if (started_) _longjmp(here_, 1);
    started_ = true;
    setcontext(&context_);
  }

  // Called from inside the fiber: gives control back to resume().
  [[gnu::noinline]] void suspend() {
    if (_setjmp(here_) == 0) _longjmp(caller_, 1);
  }

 private:
  // A kernel's frame holds its accumulators and fragments, at most a few KiB; the rest is room for unoptimised builds.
  static constexpr std::size_t kStackBytes = 64 * 1024;

  static void entry(unsigned high, unsigned low) {
    auto* self = reinterpret_cast<Fiber*>((std::uintptr_t{high} << 32) | low);
    self->body_();
    _longjmp(self->caller_, 1);
  }

  std::unique_ptr<char[]> stack_;
  std::function<void()> body_;
  ucontext_t context_{};
  jmp_buf here_{}, caller_{};
  bool started_ = false;
};

}  // namespace forge::emulator
