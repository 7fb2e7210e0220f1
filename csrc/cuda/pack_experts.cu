#include "pack_experts.h"

#include <algorithm>

#include "mix_experts.cuh"

namespace dasr {
namespace {

constexpr int kNThreads = 256;
constexpr int kNWarps = kNThreads / 32;
constexpr int64_t kMaxGrid = 4096;  // blocks; they walk over the tiles

// A tile is 16 output channels by some input channels by up to kMaxTaps taps. The weight is read
// along memory, [row][column][tap]; shared memory turns it around, so that rows of k are written
// along memory, too.
constexpr int kRows = 16;
constexpr int kMaxTaps = 9;
constexpr int kMaxPitch = 16 * kMaxTaps + 1;  // of rows: odd, like that of columns, for the banks
constexpr int kTileElements = kRows * kMaxPitch;

// Samples that share one read of the experts: 8 of two bytes, 4 of float32, 2 of float64.
constexpr int kMaxSamples = 8;
struct alignas(16) TileMemory {
  unsigned char bytes[kTileElements * kMaxSamples * 2];
};

// A layer and how it is cut into tiles.
struct TiledLayer : PackExpertsLayer {
  int64_t first_tile = 0;  // among those of all layers
  int64_t row_tiles = 0;   // of a segment
  int64_t column_tiles = 0;
  int tap_tiles = 0;
  int columns = 0;      // of a tile
  bool vector = false;  // weights can be read as vectors of kWidth elements
};

constexpr int kMaxLayers = 32;
struct PackLaunch {
  TiledLayer layers[kMaxLayers];
  int n_layers = 0;
  int samples_per_group = 1;
  int64_t n_groups = 0;  // of samples
  int64_t n_tiles = 0;   // of all layers and groups of samples
  const void* routing = nullptr;
  int64_t batch = 0, experts = 0;
  DType routing_type = DType::kFloat32, out_type = DType::kFloat32;
  bool transposed = false;
};
static_assert(sizeof(PackLaunch) <= 4096, "parameters of a kernel");

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Parts of the rows that no tile straddles: in a transposed output each has columns of its own.
__host__ __device__ inline int64_t segments(const PackExpertsLayer& layer, bool transposed) {
  return transposed ? layer.groups : 1;
}

// Where a tile lies in the weight and in the output.
struct Tile {
  int64_t row, column, b;  // the first ones
  int tap;
  int n_rows, n_columns, n_taps, n_samples;
  int64_t n, k;              // the first ones of the output
  int tap_pitch, row_pitch;  // in shared memory: [row][column][tap]

  __device__ Tile(const PackLaunch& p, const TiledLayer& layer, int64_t index) {
    const auto next = [&index](int64_t count) {
      const int64_t quotient = index / count, remainder = index - quotient * count;
      index = quotient;
      return remainder;
    };
    const auto part = [](int64_t rest, int size) {
      return static_cast<int>(rest < size ? rest : size);
    };
    // Groups of samples that read the same experts are neighbours: they meet in the L2.
    b = next(p.n_groups) * p.samples_per_group;
    tap = static_cast<int>(next(layer.tap_tiles)) * kMaxTaps;
    column = next(layer.column_tiles) * layer.columns;
    const int64_t row_in_segment = next(layer.row_tiles) * kRows, segment = index;
    const int64_t segment_rows = layer.out_channels / segments(layer, p.transposed);
    row = segment * segment_rows + row_in_segment;
    n_samples = part(p.batch - b, p.samples_per_group);
    n_taps = part(layer.taps - tap, kMaxTaps);
    n_columns = part(layer.group_in - column, layer.columns);
    n_rows = part(segment_rows - row_in_segment, kRows);
    n = p.transposed ? segment * layer.group_in + column : row;
    k = p.transposed ? row_in_segment : column;
    tap_pitch = n_taps | 1;
    row_pitch = layer.columns * tap_pitch + 1;
  }
};

// kWidth neighbours of one row of a tile, among its columns and taps.
struct Neighbours {
  int count;           // of those that exist
  int64_t base;        // of the first, in one expert
  int offset[kWidth];  // from there
  int place[kWidth];   // in shared memory

  __device__ Neighbours(const TiledLayer& layer, const Tile& tile, int index) {
    const int run = tile.n_columns * tile.n_taps, per_row = (run + kWidth - 1) / kWidth;
    const int row = index / per_row, first = (index - row * per_row) * kWidth;
    count = row >= tile.n_rows ? 0 : run - first < kWidth ? run - first : kWidth;
    int column = first / tile.n_taps, tap = first - column * tile.n_taps;
    base = ((tile.row + row) * layer.group_in + tile.column + column) * layer.taps + tile.tap + tap;
    const int first_offset = column * layer.taps + tap;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      offset[j] = column * layer.taps + tap - first_offset;
      place[j] = row * tile.row_pitch + column * tile.tap_pitch + tap;
      if (++tap == tile.n_taps) {
        tap = 0;
        ++column;
      }
    }
  }

  // values[r] = their weights in expert expert_of(r); zeros where that is negative.
  template <int kN, class acc_t, class ExpertOf>
  __device__ __forceinline__ void load(const TiledLayer& layer, ExpertOf expert_of,
                                       acc_t (&values)[kN][kWidth]) const {
    with_type<acc_t>(layer.weight_type, [&](auto t) {
      using T = decltype(t);
      const int64_t numel = layer.out_channels * layer.group_in * layer.taps;
      Pack<T, kWidth> raw[kN] = {};
#pragma unroll
      for (int r = 0; r < kN; ++r) {
        const int64_t expert = expert_of(r);
        if (expert < 0) continue;
        const T* from = static_cast<const T*>(layer.weight) + expert * numel + base;
        if (layer.vector) {
          if (count > 0) raw[r] = load_pack<T, kWidth>(from);
        } else {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            if (j < count) raw[r].values[j] = from[offset[j]];
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kN; ++r) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[r][j] = widen(raw[r].values[j]);
      }
    });
  }
};

// Fills shared memory with the tile of each sample, [sample][row][column][tap], in the output's
// type.
template <class acc_t>
__device__ __forceinline__ void mix_tile(const PackLaunch& p, const TiledLayer& layer,
                                         const Tile& tile,
                                         acc_t (&routing)[kExpertChunk][kMaxSamples],
                                         unsigned char* memory) {
  const int tid = threadIdx.x;
  const int per_row = (tile.n_columns * tile.n_taps + kWidth - 1) / kWidth;
  for (int first = 0; first < tile.n_rows * per_row; first += kNThreads) {
    const Neighbours own(layer, tile, first + tid);
    acc_t acc[kMaxSamples][kWidth] = {};
    if (p.routing == nullptr) {
      own.load(layer, [&](int b) -> int64_t { return b < tile.n_samples ? tile.b + b : -1; }, acc);
    } else {
      mix_experts<acc_t, kNThreads>(
          p.routing, p.routing_type, p.experts, tile.b, tile.n_samples, first == 0, routing,
          [&](auto expert_of, auto& weight) { own.load(layer, expert_of, weight); }, acc);
    }
    with_type<acc_t>(p.out_type, [&](auto t) {
      using T = decltype(t);
#pragma unroll
      for (int b = 0; b < kMaxSamples; ++b) {
        if (b >= tile.n_samples) break;
        T* const to = reinterpret_cast<T*>(memory) + b * kTileElements;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (j < own.count) to[own.place[j]] = Narrow<T>::from(acc[b][j]);
        }
      }
    });
  }
}

// Writes the tiles as rows of k, kWide elements at a time and zeros behind the last.
template <class T, int kWide>
__device__ __forceinline__ void store_tile(const PackLaunch& p, const TiledLayer& layer,
                                           const Tile& tile, const unsigned char* memory) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n_count = p.transposed ? tile.n_columns : tile.n_rows;
  const int k_count = p.transposed ? tile.n_rows : tile.n_columns;
  const int n_step = p.transposed ? tile.tap_pitch : tile.row_pitch;
  const int k_step = p.transposed ? tile.row_pitch : tile.tap_pitch;
  const int packs = (k_count + kWide - 1) / kWide;
  T* const out = static_cast<T*>(layer.out) + tile.b * layer.batch_stride +
                 tile.tap * layer.tap_stride + tile.n * layer.row_stride + tile.k;
  for (int i = lane; i < n_count * packs; i += 32) {
    const int n = i / packs, k = (i - n * packs) * kWide;
    const T* const row = reinterpret_cast<const T*>(memory) + n * n_step + k * k_step;
    // Warps share the samples and taps.
    for (int b = 0, t = warp;; t += kNWarps) {
      for (; t >= tile.n_taps; t -= tile.n_taps) ++b;
      if (b >= tile.n_samples) break;
      T* const to = out + b * layer.batch_stride + t * layer.tap_stride + n * layer.row_stride + k;
      const T* const from = row + b * kTileElements + t;
      if constexpr (kWide == 1) {
        *to = *from;
      } else {
        Pack<T, kWide> pack;
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
          pack.values[j] = k + j < k_count ? from[j * k_step] : Narrow<T>::from(0.0f);
        }
        store_pack(to, pack);
      }
    }
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kNThreads, 2)
    pack_experts_kernel(const __grid_constant__ PackLaunch p) {
  DASR_SHARED(routing, acc_t[kExpertChunk][kMaxSamples]);
  DASR_SHARED(memory, TileMemory);
  allow_dependents();
  for (int64_t index = blockIdx.x; index < p.n_tiles; index += gridDim.x) {
    int l = 0;
    while (l + 1 < p.n_layers && p.layers[l + 1].first_tile <= index) ++l;
    const TiledLayer& layer = p.layers[l];
    const Tile tile(p, layer, index - layer.first_tile);
    mix_tile<acc_t>(p, layer, tile, routing, memory.bytes);
    __syncthreads();
    with_type<acc_t>(p.out_type, [&](auto t) {
      using T = decltype(t);
      if (layer.dense) {
        store_tile<T, 1>(p, layer, tile, memory.bytes);
      } else {
        store_tile<T, 16 / sizeof(T)>(p, layer, tile, memory.bytes);
      }
    });
    __syncthreads();  // the next tile may overwrite this one
  }
}

bool in_double(const PackExpertsParams& p, const PackExpertsLayer& layer) {
  return layer.weight_type == DType::kFloat64 || p.out_type == DType::kFloat64 ||
         (p.routing != nullptr && p.routing_type == DType::kFloat64);
}

bool valid(const PackExpertsParams& p, const PackExpertsLayer& layer) {
  if (layer.out_channels < 0 || layer.group_in < 0 || layer.taps < 0 || layer.groups < 1 ||
      layer.out_channels % layer.groups != 0) {
    return false;
  }
  if (layer.dense || layer.out_channels * layer.group_in * layer.taps == 0) return true;
  const int64_t bytes = size_of(p.out_type);
  const int64_t k = p.transposed ? layer.out_channels / layer.groups : layer.group_in;
  const auto aligned = [&](int64_t stride) { return stride * bytes % 16 == 0; };
  return reinterpret_cast<uintptr_t>(layer.out) % 16 == 0 && aligned(layer.batch_stride) &&
         aligned(layer.tap_stride) && aligned(layer.row_stride) && layer.row_stride >= k;
}

TiledLayer cut(const PackExpertsParams& p, const PackExpertsLayer& layer) {
  TiledLayer tiled;
  static_cast<PackExpertsLayer&>(tiled) = layer;
  tiled.columns = 16 * (kMaxTaps / (std::min(layer.taps, kMaxTaps) | 1));
  tiled.row_tiles = divide_up(layer.out_channels / segments(layer, p.transposed), kRows);
  tiled.column_tiles = divide_up(layer.group_in, tiled.columns);
  tiled.tap_tiles = static_cast<int>(divide_up(layer.taps, kMaxTaps));
  tiled.vector = layer.taps <= kMaxTaps &&
                 vector_rows(layer.weight, layer.weight_type, layer.group_in * layer.taps);
  return tiled;
}

cudaError_t launch_tiles(const PackLaunch& p, bool in_double, cudaStream_t stream) {
  if (p.n_tiles == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(std::min(p.n_tiles, kMaxGrid)));
  auto* kernel = in_double ? &pack_experts_kernel<double> : &pack_experts_kernel<float>;
  return launch(kernel, grid, kNThreads, 0, stream, p);
}

}  // namespace

cudaError_t pack_experts(const PackExpertsParams& p, cudaStream_t stream) {
  if (p.batch < 0 || p.n_layers < 0 || (p.routing != nullptr && p.experts < 1)) {
    return cudaErrorInvalidValue;
  }
  for (int64_t i = 0; i < p.n_layers; ++i) {
    if (!valid(p, p.layers[i])) return cudaErrorInvalidValue;
  }
  if (p.batch == 0) return cudaSuccess;
  PackLaunch common;
  common.routing = p.routing;
  common.routing_type = p.routing_type;
  common.out_type = p.out_type;
  common.batch = p.batch;
  common.experts = p.experts;
  common.transposed = p.transposed;
  const int64_t at_a_time = sizeof(TileMemory) / (kTileElements * size_of(p.out_type));
  common.n_groups = divide_up(p.batch, at_a_time);
  common.samples_per_group = static_cast<int>(divide_up(p.batch, common.n_groups));
  for (const bool as_double : {false, true}) {
    PackLaunch next = common;
    for (int64_t i = 0; i < p.n_layers; ++i) {
      if (in_double(p, p.layers[i]) != as_double) continue;
      TiledLayer layer = cut(p, p.layers[i]);
      const int64_t n_tiles = segments(layer, p.transposed) * layer.row_tiles * layer.column_tiles *
                              layer.tap_tiles * common.n_groups;
      if (n_tiles == 0) continue;
      layer.first_tile = next.n_tiles;
      next.layers[next.n_layers++] = layer;
      next.n_tiles += n_tiles;
      if (next.n_layers < kMaxLayers) continue;
      const cudaError_t error = launch_tiles(next, as_double, stream);
      if (error != cudaSuccess) return error;
      next = common;
    }
    const cudaError_t error = launch_tiles(next, as_double, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dasr
