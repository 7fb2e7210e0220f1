// Thin wrappers of single PTX instructions of Hopper (sm_90a), each with its emulated twin.
#pragma once

#include "ptx.cuh"

namespace dasr {

// Sums that a thread holds of the product of a warpgroup, [64, kN]: element 4 * j + i is row
// 16 * (warp % 4) + lane / 4 + i / 2 * 8, column 8 * j + lane % 4 * 2 + i % 2.
template <int kN>
using WgmmaSums = float[kN / 2];

#ifdef DASR_EMULATION

inline uint32_t matrix_address(const void* pointer) { return emulation::shared_address(pointer); }

inline void named_barrier_sync(int id, int threads,
                               emulation::Where where = emulation::Where::here()) {
  emulation::named_barrier(id, threads, where);
}
inline void fence_proxy_async() { emulation::fence_proxy_async(); }

template <class T>
void wgmma_m64n128k16(WgmmaSums<128>& d, uint64_t a, uint64_t b, int accumulate) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  emulation::wgmma<128>(
      d, a, b, accumulate != 0,
      std::is_same_v<T, __half> ? &emulation::half_value : &emulation::bfloat16_value);
}
inline void wgmma_fence(WgmmaSums<128>&) { emulation::wgmma_fence(); }
inline void wgmma_commit() { emulation::wgmma_commit(); }
template <int kPending>
void wgmma_wait(WgmmaSums<128>&, emulation::Where where = emulation::Where::here()) {
  emulation::wgmma_wait<128>(kPending, where);
}

#else

__device__ __forceinline__ uint32_t matrix_address(const void* pointer) {
  return shared_address(pointer);
}

// Waits for `threads` threads, whole warps; barrier 0 is that of __syncthreads.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// What this thread has written to shared memory, by cp.async too once that was waited for, becomes
// visible to wgmma; of other threads behind a barrier.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The 64 sums as operands: what the compiler sees of them stands on its side of each instruction.
#define DASR_WGMMA_SUMS                                                                           \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),  \
      "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),  \
      "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),  \
      "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),  \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define DASR_WGMMA_REGISTERS                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DASR_WGMMA(TYPE)                                                                     \
  asm volatile(                                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                           \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" DASR_WGMMA_REGISTERS \
      "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                       \
      : DASR_WGMMA_SUMS                                                                      \
      : "l"(a), "l"(b), "r"(accumulate))

// d = a * b (+ d) for a warpgroup, a [64, 16] and b [128, 16] in shared memory by descriptors. The
// sums are ready after a wait for the group that the product was committed to.
template <class T>
__device__ __forceinline__ void wgmma_m64n128k16(WgmmaSums<128>& d, uint64_t a, uint64_t b,
                                                 int accumulate) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  if constexpr (std::is_same_v<T, __half>) {
    DASR_WGMMA("f16");
  } else {
    DASR_WGMMA("bf16");
  }
}
// Before the first product, and whenever a thread has touched its sums since.
__device__ __forceinline__ void wgmma_fence(WgmmaSums<128>& d) {
  asm volatile("wgmma.fence.sync.aligned;" : DASR_WGMMA_SUMS::"memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for this warp's part of all groups but the kPending most recent ones.
template <int kPending>
__device__ __forceinline__ void wgmma_wait(WgmmaSums<128>& d) {
  asm volatile("wgmma.wait_group.sync.aligned %64;" : DASR_WGMMA_SUMS : "n"(kPending) : "memory");
}

#undef DASR_WGMMA
#undef DASR_WGMMA_REGISTERS
#undef DASR_WGMMA_SUMS

#endif

// The descriptor of an operand without a swizzle: eight rows of 16 bytes (eight elements of k) lie
// one behind the other, from any address that 16 divides; the next eight elements of k of the same
// rows k_stride bytes away, the next eight rows row_stride bytes. An address moves on by adding a
// sixteenth of it to the descriptor.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* start, int k_stride,
                                                      int row_stride) {
  return static_cast<uint64_t>((matrix_address(start) & 0x3FFFF) >> 4) |
         static_cast<uint64_t>(k_stride >> 4) << 16 | static_cast<uint64_t>(row_stride >> 4) << 32;
}

}  // namespace dasr
