#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace dasr {
namespace cpu {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kPortable;
}

IsaChoice choose() {
  const Isa best = best_isa();
  const char* forced = std::getenv("DASR_OPS_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    return {best, nullptr};
  }
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (std::strcmp(forced, isa_name(isa)) == 0) {
      if (isa > best) {
        return {best, "DASR_OPS_CPU_ISA names an instruction set that this processor lacks"};
      }
      return {isa, nullptr};
    }
  }
  return {best, "DASR_OPS_CPU_ISA must be one of avx512, avx2, portable"};
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

const IsaChoice& isa_choice() {
  static const IsaChoice choice = choose();
  return choice;
}

}  // namespace cpu
}  // namespace dasr
