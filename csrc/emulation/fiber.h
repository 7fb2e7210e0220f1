// One stackful fiber per CUDA thread. x86-64 switches in a dozen instructions; other machines make
// the stack with ucontext and switch with setjmp, which unlike swapcontext makes no system call.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define DASR_EMULATION_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(DASR_EMULATION_UCONTEXT)
#define DASR_EMULATION_ASM_SWITCH 1
#else
#include <setjmp.h>  // compile with -U_FORTIFY_SOURCE: its longjmp refuses to change stacks
#include <ucontext.h>
#endif

namespace dasr::emulation {

#ifdef DASR_EMULATION_ASM_SWITCH
// Saves the callee-saved registers and the stack pointer in *from and continues at to.
__attribute__((naked, noinline)) inline void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
#endif

class Fiber {
 public:
  // A sanitizer's stack frames are several times as large.
#ifdef DASR_EMULATION_ASAN
  static constexpr size_t kStackBytes = 512 * 1024;
#else
  static constexpr size_t kStackBytes = 128 * 1024;
#endif
  static constexpr size_t kGuardBytes = 4096 * 16;  // a page is up to 64 KiB on aarch64

  Fiber() = default;  // the thread that launches
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { release(); }

  // entry never returns. May be called again for a fiber that was abandoned half-way.
  void create(void (*entry)()) {
    release();
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
    mprotect(base_, kGuardBytes, PROT_NONE);
    stack_ = base_ + kGuardBytes;
    size_ = kStackBytes;
    entry_ = entry;
#ifdef DASR_EMULATION_ASM_SWITCH
    auto* top = reinterpret_cast<void**>(stack_ + size_);
    *--top = nullptr;  // a return address, so that start() finds the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&Fiber::start);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context_ = top;
#else
    started_ = false;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::start, 0);
#endif
  }

  void switch_to(Fiber& next) {
    running_ = &next;
#ifdef DASR_EMULATION_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, next.stack_, next.size_);
    origin_ = this;
    raw_switch(next);
    finish_switch(fake_stack);
#else
    raw_switch(next);
#endif
  }

  bool created() const { return base_ != nullptr; }

 private:
  [[noreturn]] static void start() {
#ifdef DASR_EMULATION_ASAN
    finish_switch(nullptr);
#endif
    running_->entry_();
    std::abort();
  }

#ifdef DASR_EMULATION_ASAN
  // Only a switch away from it tells where the launching thread's own stack lies.
  static void finish_switch(void* fake_stack) {
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
    if (origin_->base_ != nullptr) return;
    origin_->stack_ = static_cast<char*>(const_cast<void*>(bottom));
    origin_->size_ = size;
  }
#endif

  void raw_switch(Fiber& next) {
#ifdef DASR_EMULATION_ASM_SWITCH
    switch_stack(&context_, next.context_);
#else
    if (_setjmp(jump_) == 0) {
      if (next.base_ == nullptr || next.started_) _longjmp(next.jump_, 1);
      next.started_ = true;
      setcontext(&next.context_);
    }
#endif
  }

  void release() {
    if (base_ == nullptr) return;
#ifdef DASR_EMULATION_ASAN
    __asan_unpoison_memory_region(stack_, size_);
#endif
    munmap(base_, kGuardBytes + kStackBytes);
    base_ = nullptr;
  }

  inline static Fiber* running_ = nullptr;
  char* base_ = nullptr;
  char* stack_ = nullptr;
  size_t size_ = 0;
  void (*entry_)() = nullptr;
#ifdef DASR_EMULATION_ASAN
  inline static Fiber* origin_ = nullptr;
#endif
#ifdef DASR_EMULATION_ASM_SWITCH
  void* context_ = nullptr;
#else
  ucontext_t context_;
  jmp_buf jump_;
  bool started_ = false;
#endif
};

}  // namespace dasr::emulation
