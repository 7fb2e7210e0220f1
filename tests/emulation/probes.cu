#include "probes.cuh"

#include <cstring>
#include <stdexcept>

using dasr::cp_async;
using dasr::cp_async_commit;
using dasr::cp_async_wait;

namespace {

// ---- indices, shuffles, votes ----

PROBE(indices) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int n = blockDim.x * blockDim.y * blockDim.z;
  out<int>(p)[block * n + thread] = block * 10000 + thread;
}

// a: which shuffle, b: its lane, delta or mask, c: width
PROBE(shuffle) {
  const int i = threadIdx.x;
  const float value = in<float>(p)[i];
  float result = 0;
  if (p.a == 0) result = __shfl_sync(~0u, value, p.b, p.c);
  if (p.a == 1) result = __shfl_up_sync(~0u, value, p.b, p.c);
  if (p.a == 2) result = __shfl_down_sync(~0u, value, p.b, p.c);
  if (p.a == 3) result = __shfl_xor_sync(~0u, value, p.b, p.c);
  out<float>(p)[i] = result;
}

PROBE(shuffle_double) {
  out<double>(p)[threadIdx.x] = __shfl_xor_sync(~0u, in<double>(p)[threadIdx.x], 1);
}

PROBE(shuffle_halves) {  // each half of the warp by itself, in different code
  const int i = threadIdx.x;
  if (i < 16) {
    out<float>(p)[i] = __shfl_sync(0x0000FFFFu, in<float>(p)[i], 3);
  } else {
    out<float>(p)[i] = __shfl_sync(0xFFFF0000u, in<float>(p)[i], 20);
  }
}

PROBE(vote) {
  const int i = threadIdx.x, predicate = in<int>(p)[i];
  out<unsigned>(p)[3 * i] = __ballot_sync(~0u, predicate);
  out<unsigned>(p)[3 * i + 1] = __any_sync(~0u, predicate);
  out<unsigned>(p)[3 * i + 2] = __all_sync(~0u, predicate);
}

// ---- shared memory ----

// The sum of blockDim.x values by a tree; a: leave out the barrier inside.
PROBE(block_sum) {
  DASR_SHARED(values, float[1024]);
  const int i = threadIdx.x;
  values[i] = in<float>(p)[i];
  __syncthreads();
  for (int n = blockDim.x / 2; n > 0; n /= 2) {
    if (i < n) values[i] += values[i + n];
    if (p.a == 0) __syncthreads();
  }
  if (p.a != 0) __syncthreads();
  out<float>(p)[i] = values[0];
}

// The neighbour's value through shared memory; a: leave out __syncwarp; b: a shuffle instead.
PROBE(warp_exchange) {
  DASR_SHARED(values, float[32]);
  const int i = threadIdx.x;
  values[i] = in<float>(p)[i];
  if (p.a == 0) __syncwarp();
  if (p.b != 0) __shfl_sync(~0u, 0, 0);
  out<float>(p)[i] = values[i ^ 1];
}

// Histogram of values below 8.
PROBE(shared_atomics) {
  DASR_SHARED(bins, int[8]);
  const int i = threadIdx.x;
  if (i < 8) bins[i] = 0;
  __syncthreads();
  atomicAdd(&bins[in<int>(p)[i]], 1);
  __syncthreads();
  if (i < 8) atomicAdd(&out<int>(p)[i], bins[i]);
}

PROBE(poison) {
  DASR_SHARED(fixed, float[32]);
  DASR_DYNAMIC_SHARED(memory);
  float* dynamic = reinterpret_cast<float*>(memory);
  const int i = threadIdx.x;
  out<float>(p)[2 * i] = fixed[i];
  out<float>(p)[2 * i + 1] = dynamic[i];
  __syncthreads();
  fixed[i] = dynamic[i] = 1;  // gone in the next block
}

// Two static arrays of different types keep apart, also in two instantiations.
template <class T>
__device__ void fill(T value) {
  DASR_SHARED(first, T[4][8]);
  DASR_SHARED(second, T[32]);
  const int i = threadIdx.x;
  first[i / 8][i % 8] = value + i;
  second[i] = value;
  __syncthreads();
  value = first[(31 - i) / 8][(31 - i) % 8] + second[i];
  __syncthreads();
}
PROBE(static_arrays) {
  DASR_SHARED(flags, unsigned char[3]);
  if (threadIdx.x == 0) flags[1] = 7;
  fill<float>(1);
  fill<double>(2);
  __syncthreads();
  out<int>(p)[threadIdx.x] = flags[1];
}

PROBE(write_beyond_dynamic) {  // a: byte offset
  DASR_DYNAMIC_SHARED(memory);
  if (threadIdx.x == 0) memory[p.a] = 1;
}

PROBE(read_beyond_dynamic) {
  DASR_DYNAMIC_SHARED(memory);
  out<float>(p)[threadIdx.x] = *reinterpret_cast<const float*>(memory + p.a);
}

#ifdef DASR_EMULATION  // nvcc refuses these itself
PROBE(write_beyond_static) {
  DASR_SHARED(values, float[16]);
  float* unknown = values;
  asm volatile("" : "+r"(unknown));  // hides the size from the compiler
  unknown[threadIdx.x] = 1;
}

PROBE(too_much_static) {
  DASR_SHARED(values, float[13000]);
  values[threadIdx.x] = 0;
}
#endif

PROBE(misaligned_pack) {
  out<float>(p)[threadIdx.x] = dasr::load_pack<float, 4>(in<float>(p) + 1).values[0];
}

// ---- threads that do not agree ----

PROBE(barrier_after_exit) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

PROBE(barrier_at_two_places) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    out<int>(p)[0] = 1;
    __syncthreads();
  }
}

PROBE(barrier_against_shuffle) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __shfl_sync(~0u, 1, 0);
  }
}

PROBE(shuffle_after_exit) {
  if (threadIdx.x == 31) return;
  __shfl_sync(~0u, 1, 0);
}

PROBE(shuffle_skipped) {
  if (threadIdx.x != 3) __shfl_xor_sync(~0u, 1, 1);
  __syncthreads();
}

PROBE(shuffle_masks_differ) { __shfl_sync(threadIdx.x < 16 ? ~0u : 0xFFFF0000u, 1, 16); }

PROBE(shuffle_outside_mask) {
  if (threadIdx.x < 16) __shfl_sync(0xFF00u, 1, 8);
}

PROBE(shuffle_from_nobody) {
  if (threadIdx.x < 16) out<int>(p)[threadIdx.x] = __shfl_sync(0xFFFFu, 1, 20);
}

PROBE(mma_in_half_a_warp) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) dasr::mma_m16n8k16<__half>(d, a, b);
}

// ---- cp.async ----

// Two groups of 32 floats; the output shows both after wait<1> and after wait<0>. a: bytes taken
// from each 16 of the source.
PROBE(async_groups) {
  DASR_SHARED(memory, Aligned<float[64]>);
  float* values = memory.values;
  const int i = threadIdx.x;
  for (int group = 0; group < 2; ++group) {
    if (i < 8) cp_async<16>(values + 32 * group + 4 * i, in<float>(p) + 32 * group + 4 * i, p.a);
    cp_async_commit();
  }
  cp_async_wait<1>();
  __syncthreads();
  for (int j = i; j < 64; j += 32) out<float>(p)[j] = values[j];
  __syncthreads();
  cp_async_wait<0>();
  __syncthreads();
  for (int j = i; j < 64; j += 32) out<float>(p)[64 + j] = values[j];
}

PROBE(async_sizes) {
  DASR_SHARED(memory, Aligned<float[32]>);
  const int i = threadIdx.x;
  if (i < 8) cp_async<4>(memory.values + i, in<float>(p) + i);
  if (i < 4) cp_async<8>(memory.values + 8 + 2 * i, in<float>(p) + 8 + 2 * i);
  if (i < 4) cp_async<16>(memory.values + 16 + 4 * i, in<float>(p) + 16 + 4 * i);
  dasr::cp_async_wait_all();
  __syncthreads();
  out<float>(p)[i] = memory.values[i];
}

// a: 1 leaves out the wait, 2 the barrier after it, 3 the barrier before the buffer is used again
PROBE(async_pipeline) {
  DASR_SHARED(memory, Aligned<float[128]>);
  const int i = threadIdx.x;
  float sum = 0;
  for (int step = 0; step < 3; ++step) {
    cp_async<4>(memory.values + i, in<float>(p) + i);
    cp_async_commit();
    if (p.a != 1) cp_async_wait<0>();
    if (p.a != 2) __syncthreads();
    sum += memory.values[blockDim.x - 1 - i];
    if (p.a != 3) __syncthreads();
  }
  out<float>(p)[i] = sum;
}

PROBE(async_misaligned) {
  DASR_SHARED(memory, Aligned<float[64]>);
  if (threadIdx.x == 0) cp_async<16>(memory.values + p.a, in<float>(p) + p.b);
  dasr::cp_async_wait_all();
}

PROBE(async_beyond) {
  DASR_DYNAMIC_SHARED(memory);
  cp_async<16>(memory + 16 * threadIdx.x, in<float>(p) + 4 * threadIdx.x);
  dasr::cp_async_wait_all();
}

PROBE(async_to_global) { cp_async<4>(out<float>(p), in<float>(p)); }

// ---- ldmatrix, mma ----

// in: four 8x8 matrices of 16-bit elements; a: how many are loaded, b: transposed
template <int kMatrices>
__device__ void load_matrices(Probe p, const uint16_t* shared) {
  const int lane = threadIdx.x;
  uint32_t r[kMatrices];
  const uint16_t* row = shared + 8 * (lane % (8 * kMatrices));
  if (p.b == 0) {
    dasr::ldmatrix<kMatrices>(r, row);
  } else {
    dasr::ldmatrix_trans<kMatrices>(r, row);
  }
  for (int i = 0; i < kMatrices; ++i) out<uint32_t>(p)[32 * i + lane] = r[i];
}
PROBE(ldmatrix) {
  DASR_SHARED(memory, Aligned<uint16_t[256]>);
  for (int i = threadIdx.x; i < 256; i += 32) memory.values[i] = in<uint16_t>(p)[i];
  if (p.c == 0) __syncwarp();
  if (p.a == 1) load_matrices<1>(p, memory.values);
  if (p.a == 2) load_matrices<2>(p, memory.values);
  if (p.a == 4) load_matrices<4>(p, memory.values);
}

PROBE(ldmatrix_misaligned) {
  DASR_SHARED(memory, Aligned<uint16_t[512]>);
  uint32_t r[1];
  dasr::ldmatrix(r, memory.values + 8 * threadIdx.x + 4);
}

PROBE(ldmatrix_beyond) {
  DASR_DYNAMIC_SHARED(memory);
  uint32_t r[4];
  dasr::ldmatrix(r, memory + 16 * threadIdx.x);
}

// in: registers a[4], b[2], d[4] of every lane, out: d[4]; a: 0 f16, 1 bf16, 2 tf32
PROBE(mma) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = in<uint32_t>(p)[10 * lane + i];
  for (int i = 0; i < 2; ++i) b[i] = in<uint32_t>(p)[10 * lane + 4 + i];
  for (int i = 0; i < 4; ++i) d[i] = in<float>(p)[10 * lane + 6 + i];
  if (p.a == 0) dasr::mma_m16n8k16<__half>(d, a, b);
  if (p.a == 1) dasr::mma_m16n8k16<__nv_bfloat16>(d, a, b);
  if (p.a == 2) dasr::mma_m16n8k8_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) out<float>(p)[4 * lane + i] = d[i];
}

// out [16, 8] = A [16, 16] * B [16, 8] in bf16, both row-major in `in`, as kernels do it: ldmatrix
// for A, ldmatrix.trans for B.
PROBE(matrix_product) {
  DASR_SHARED(memory, Aligned<uint16_t[384]>);
  const int lane = threadIdx.x;
  for (int i = lane; i < 48; i += 32) cp_async<16>(memory.values + 8 * i, in<uint16_t>(p) + 8 * i);
  dasr::cp_async_wait_all();
  __syncwarp();
  uint32_t a[4], b[2];
  float d[4] = {};
  dasr::ldmatrix(a, memory.values + lane % 16 * 16 + lane / 16 * 8);
  dasr::ldmatrix_trans(b, memory.values + 256 + lane % 16 * 8);
  dasr::mma_m16n8k16<__nv_bfloat16>(d, a, b);
  for (int i = 0; i < 4; ++i) {
    out<float>(p)[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}

// ---- conversions ----

// in: float (a = 0) or double (a = 1); out: f16 bits, bf16 bits, tf32 bits per value
PROBE(narrow) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.b) return;
  __half half = p.a ? __double2half(in<double>(p)[i]) : __float2half_rn(in<float>(p)[i]);
  __nv_bfloat16 bfloat16 =
      p.a ? __double2bfloat16(in<double>(p)[i]) : __float2bfloat16_rn(in<float>(p)[i]);
  uint16_t bits[2];
  memcpy(&bits[0], &half, 2);
  memcpy(&bits[1], &bfloat16, 2);
  out<uint32_t>(p)[3 * i] = bits[0];
  out<uint32_t>(p)[3 * i + 1] = bits[1];
  out<uint32_t>(p)[3 * i + 2] = p.a ? 0 : dasr::to_tf32(in<float>(p)[i]);
}

// in: 16-bit patterns; out: as f16 and as bf16
PROBE(widen) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.b) return;
  __half half;
  __nv_bfloat16 bfloat16;
  memcpy(&half, in<uint16_t>(p) + i, 2);
  memcpy(&bfloat16, in<uint16_t>(p) + i, 2);
  out<float>(p)[2 * i] = __half2float(half);
  out<float>(p)[2 * i + 1] = __bfloat162float(bfloat16);
}

}  // namespace

std::vector<std::string> probe_names() {
  std::vector<std::string> names;
  for (const auto& entry : probe_registry()) names.push_back(entry.first);
  return names;
}

cudaError_t run_probe(const std::string& name, const Probe& probe, const Launch& launch) {
  const auto found = probe_registry().find(name);
  if (found == probe_registry().end()) throw std::invalid_argument("no probe " + name);
  if (launch.shared_attribute >= 0) {
    const cudaError_t error = cudaFuncSetAttribute(
        found->second, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_attribute);
    if (error != cudaSuccess) return error;
  }
  return dasr::launch(found->second, dim3(launch.grid[0], launch.grid[1], launch.grid[2]),
                      dim3(launch.block[0], launch.block[1], launch.block[2]), launch.shared,
                      nullptr, probe);
}

#ifdef DASR_EMULATION
dasr::emulation::Settings& emulation_settings() { return dasr::emulation::settings; }
dasr::emulation::Statistics emulation_statistics() { return dasr::emulation::statistics; }
#endif
