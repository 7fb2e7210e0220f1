// Choice of the instruction set at run time, and the kernels compiled for each.
//
// Flags per file (all: -O3 -std=c++17; on other processors than x86-64 only the third and fourth):
//   conv_avx512.cpp     -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma
//   conv_avx2.cpp       -mavx2 -mfma
//   conv_portable.cpp   none
//   the others          none
// The first three compile the same sources in a namespace each (DASR_OPS_ISA). Nothing in those
// sources may instantiate an inline function from outside of its namespace: the linker keeps one
// copy, which could be the one with AVX-512 instructions.
#pragma once

#include "conv.h"

namespace dasr {
namespace cpu {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// DASR_OPS_CPU_ISA=avx512|avx2|portable forces one; read once per process. A value that is unknown
// or that this processor lacks leaves the best one in `isa` and a message in `error`.
struct IsaChoice {
  Isa isa;
  const char* error;  // null: none
};

const IsaChoice& isa_choice();

const char* isa_name(Isa isa);

#define DASR_OPS_DECLARE_KERNELS(ns)                                            \
  namespace ns {                                                                \
  void conv_forward(const ConvParams& params, const ThreadPool& pool);          \
  void conv_backward(const ConvBackwardParams& params, const ThreadPool& pool); \
  }
DASR_OPS_DECLARE_KERNELS(portable)
DASR_OPS_DECLARE_KERNELS(avx2)
DASR_OPS_DECLARE_KERNELS(avx512)
#undef DASR_OPS_DECLARE_KERNELS

}  // namespace cpu
}  // namespace dasr
