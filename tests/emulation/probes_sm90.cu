// Probes of Hopper's instructions.
#include "../../csrc/cuda/ptx_sm90.cuh"
#include "probes.cuh"

using dasr::named_barrier_sync;
using dasr::WgmmaSums;

namespace {

// Mistakes, by number, are there for the emulation to find: nvcc shall not see them.
#ifdef DASR_EMULATION
#define MISTAKE(number) (p.b == (number))
#else
#define MISTAKE(number) false
#endif

// Groups of 64 threads reverse their values, twice.
PROBE(named_barrier) {
  DASR_SHARED(values, float[256]);
  const int i = threadIdx.x, group = i / 64, reversed = group * 64 + 63 - i % 64;
  float value = in<float>(p)[i];
  for (int round = 0; round < 2; ++round) {
    values[i] = value;
    if (!MISTAKE(1)) named_barrier_sync(1 + group, 64);
    value = values[reversed];
    if (!MISTAKE(2)) named_barrier_sync(1 + group, 64);
  }
  out<float>(p)[i] = value + values[reversed];
}

// Memory ordered by one barrier, then by another that shares a warp with it. a: without the second.
PROBE(named_barriers_in_a_row) {
  DASR_SHARED(value, float[1]);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) value[0] = in<float>(p)[0];
  if (warp <= 1) named_barrier_sync(1, 64);
  if (warp >= 1 && p.a == 0) named_barrier_sync(2, 64);
  if (warp == 2) out<float>(p)[threadIdx.x % 32] = value[0];
}

#ifdef DASR_EMULATION
PROBE(named_barrier_misuse) {
  const int warp = threadIdx.x / 32;
  if (MISTAKE(1)) named_barrier_sync(0, 64);
  if (MISTAKE(2)) named_barrier_sync(16, 64);
  if (MISTAKE(3)) named_barrier_sync(1, 40);
  if (MISTAKE(4)) named_barrier_sync(1, 256);
  if (MISTAKE(5) && warp != 1) named_barrier_sync(1 + warp / 2, 64);
  if (MISTAKE(6)) named_barrier_sync(1, 64);  // two groups at one barrier
  if (MISTAKE(7) && threadIdx.x % 32 < 16) named_barrier_sync(1, 64);
  if (MISTAKE(8)) {
    if (warp % 2 == 0) {
      named_barrier_sync(1 + warp / 2, 64);
    } else {
      named_barrier_sync(1 + warp / 2, 64);
    }
  }
  if (MISTAKE(9)) named_barrier_sync(1 + warp / 2, warp % 2 == 0 ? 64 : 32);
}
#endif

[[maybe_unused]] constexpr int kK = 32, kAStride = 64 * 16;
// Columns lie as pixels of a halo do: eight on end, ten to a row, from an odd place on.
[[maybe_unused]] constexpr int kFirst = 3, kWidth = 10;
[[maybe_unused]] constexpr int kBStride = 16 * (kFirst + 16 * kWidth) + 48;

// out [64, 128] = A [64, 32] * B [128, 32]^T, in: A and then B, row-major. a: 0 f16, 1 bf16; c:
// operands are written by cp.async, else by stores.
template <class T>
__device__ void multiply(Probe p, unsigned char* memory) {
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  unsigned char* const b_memory = memory + kK / 8 * kAStride;
  for (int i = tid; i < (64 + 128) * kK / 8; i += 128) {
    const int row = i / (kK / 8), vector = i % (kK / 8), n = row - 64;
    unsigned char* const to =
        row < 64 ? memory + vector * kAStride + row * 16
                 : b_memory + vector * kBStride + (kFirst + n / 8 * kWidth + n % 8) * 16;
    const uint16_t* const from = in<uint16_t>(p) + 8 * i;
    if (p.c != 0) {
      dasr::cp_async<16>(to, from);
    } else {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    }
  }
  if (MISTAKE(1)) dasr::fence_proxy_async();
  dasr::cp_async_wait_all();
  if (!MISTAKE(1) && !(MISTAKE(2) && tid == 77)) dasr::fence_proxy_async();
  if (!MISTAKE(3)) __syncthreads();

  WgmmaSums<128> sums = {};
  uint64_t a = dasr::matrix_descriptor(memory, kAStride, 128);
  uint64_t b = dasr::matrix_descriptor(b_memory + 16 * kFirst, kBStride, 16 * kWidth);
  if (MISTAKE(4)) a |= uint64_t{1} << 62;
  if (MISTAKE(14)) b += 20;
  if (MISTAKE(5)) b |= uint64_t{1} << 49;
  if (!MISTAKE(6)) dasr::wgmma_fence(sums);
  dasr::wgmma_m64n128k16<T>(sums, a, b, 0);
  if (!(MISTAKE(7) && warp == 3) && !(MISTAKE(8) && lane == 9)) {
    dasr::wgmma_m64n128k16<T>(sums, a + 2 * kAStride / 16, b + 2 * kBStride / 16, 1);
  }
  if (!MISTAKE(9)) dasr::wgmma_commit();
  if (MISTAKE(10)) sums[5] = 1;
  if (MISTAKE(11) && tid == 0) *reinterpret_cast<uint16_t*>(b_memory + 16 * kFirst) = 0;
  if (!MISTAKE(12)) dasr::wgmma_wait<0>(sums);
  if (MISTAKE(13)) dasr::wgmma_m64n128k16<T>(sums, a, b, 0);
  for (int i = 0; i < 64; ++i) {
    const int row = 16 * warp + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    out<float>(p)[row * 128 + column] = sums[i];
  }
}
PROBE(wgmma) {
#if defined(DASR_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  DASR_DYNAMIC_SHARED(memory);
  if (p.a == 0) {
    multiply<__half>(p, memory);
  } else {
    multiply<__nv_bfloat16>(p, memory);
  }
#endif
}

#ifdef DASR_EMULATION
// Of two groups the first is waited for. out: a sum of each, twice.
PROBE(wgmma_groups) {
  DASR_DYNAMIC_SHARED(memory);
  for (int i = threadIdx.x; i < 128 * 16; i += 128) reinterpret_cast<uint16_t*>(memory)[i] = 0;
  dasr::fence_proxy_async();
  __syncthreads();
  const uint64_t operand = dasr::matrix_descriptor(memory, 2048, 128);
  WgmmaSums<128> first = {1}, second = {2};
  dasr::wgmma_fence(first);
  dasr::wgmma_m64n128k16<__half>(first, operand, operand, 1);
  dasr::wgmma_commit();
  dasr::wgmma_m64n128k16<__half>(second, operand, operand, 1);
  dasr::wgmma_commit();
  dasr::wgmma_wait<1>(first);
  out<float>(p)[4 * threadIdx.x] = first[0];
  out<float>(p)[4 * threadIdx.x + 1] = second[0];
  dasr::wgmma_wait<0>(second);
  out<float>(p)[4 * threadIdx.x + 2] = first[0];
  out<float>(p)[4 * threadIdx.x + 3] = second[0];
}
#endif

}  // namespace
