#include "cpu/epilogue.h"

#include <algorithm>
#include <vector>

#include "ops/parallel.h"

namespace dasr::cpu {
namespace {

constexpr int64_t kGrainElements = 16384;

int64_t rows_per_thread(int64_t row_elements) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, row_elements));
}

template <typename T>
inline T activate(T value, T slope) {
  // A slope of 0 must not turn -inf into nan.
  if (value > T(0) || value != value) return value;
  return slope == T(0) ? T(0) : slope * value;
}

// One stretch of y: n elements, y at distance 1 or `y_step`, the rest at steps of their own.
template <typename T>
void forward_stretch(const T* c, int64_t c_step, const T* residual, int64_t residual_step, T* y,
                     int64_t y_step, int64_t n, const EpilogueParams& params) {
  const T slope = params.negative_slope ? T(*params.negative_slope) : T(1);
  const T scale = T(params.residual_scale);
  if (c_step == 1 && y_step == 1 && residual_step == 1) {
    for (int64_t i = 0; i < n; ++i) {
      const T value = params.negative_slope ? activate(c[i], slope) : c[i];
      y[i] = residual ? residual[i] + scale * value : value;
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const T value = params.negative_slope ? activate(c[i * c_step], slope) : c[i * c_step];
    y[i * y_step] = residual ? residual[i * residual_step] + scale * value : value;
  }
}

void pack_bits(const std::vector<uint8_t>& bytes, uint8_t* bits) {
  const int64_t n = static_cast<int64_t>(bytes.size());
  parallel_for((n + 7) / 8, kGrainElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint8_t packed = 0;
      for (int64_t j = 8 * i; j < std::min(n, 8 * i + 8); ++j) packed |= bytes[j] << (j % 8);
      bits[i] = packed;
    }
  });
}

}  // namespace

template <typename T>
void epilogue_forward(const EpilogueParams& params, const T* c, const int64_t* c_strides,
                      const T* residual, const int64_t* residual_strides, T* y, uint8_t* mask) {
  const int64_t r = params.upscale_factor;
  const int64_t channels = params.channels / (r * r);
  const int64_t height = params.height * r;
  const int64_t width = params.width * r;
  const int64_t zero_strides[4] = {0, 0, 0, 1};
  if (!residual) residual_strides = zero_strides;
  std::vector<uint8_t> positive(mask ? params.batch * channels * height * width : 0);

  const auto source = [&](int64_t b, int64_t o, int64_t row, int64_t dx) {
    return c + b * c_strides[0] + (o * r * r + (row % r) * r + dx) * c_strides[1] +
           row / r * c_strides[2];
  };
  const auto stretch = [&](const T* from, int64_t from_step, const T* res, int64_t res_step,
                           int64_t to, int64_t to_step, int64_t n) {
    // First, for y may take the place of c.
    for (int64_t i = 0; mask && i < n; ++i) positive[to + i * to_step] = from[i * from_step] > T(0);
    forward_stretch(from, from_step, res, res_step, y + to, to_step, n, params);
  };
  const auto residual_at = [&](int64_t b, int64_t o, int64_t row, int64_t column) {
    return residual ? residual + b * residual_strides[0] + o * residual_strides[1] +
                          row * residual_strides[2] + column * residual_strides[3]
                    : nullptr;
  };

  if (params.channels_last) {
    parallel_for(params.batch * height, rows_per_thread(width * channels),
                 [&](int64_t first, int64_t last) {
                   for (int64_t i = first; i < last; ++i) {
                     const int64_t b = i / height, row = i % height;
                     for (int64_t column = 0; column < width; ++column) {
                       stretch(source(b, 0, row, column % r) + column / r * c_strides[3],
                               r * r * c_strides[1], residual_at(b, 0, row, column),
                               residual ? residual_strides[1] : 1, (i * width + column) * channels,
                               1, channels);
                     }
                   }
                 });
  } else {
    parallel_for(
        params.batch * channels * height, rows_per_thread(width), [&](int64_t first, int64_t last) {
          for (int64_t i = first; i < last; ++i) {
            const int64_t row = i % height, o = i / height % channels;
            const int64_t b = i / height / channels;
            for (int64_t dx = 0; dx < r; ++dx) {
              stretch(source(b, o, row, dx), c_strides[3], residual_at(b, o, row, dx),
                      residual ? r * residual_strides[3] : 1, i * width + dx, r, params.width);
            }
          }
        });
  }
  if (mask) pack_bits(positive, mask);
}

template <typename T>
void epilogue_backward(const EpilogueParams& params, const T* grad_y, const int64_t* grad_y_strides,
                       const T* y, const uint8_t* mask, bool output_channels_last, T* grad_c) {
  const int64_t r = params.upscale_factor;
  const int64_t channels = params.channels / (r * r);
  const int64_t height = params.height * r;
  const int64_t width = params.width * r;
  const T slope = params.negative_slope ? T(*params.negative_slope) : T(1);
  const T scale = T(params.residual_scale);
  // Strides of y and of the bits in `mask`.
  const int64_t column_stride = output_channels_last ? channels : 1;
  const int64_t row_stride = column_stride * width;
  const int64_t channel_stride = output_channels_last ? 1 : height * width;
  const int64_t image_stride = channels * height * width;

  const int64_t grad_strides[4] = {image_stride, channel_stride, row_stride, column_stride};
  if (r == 1 && params.channels_last == output_channels_last &&
      std::equal(grad_strides, grad_strides + 4, grad_y_strides)) {
    parallel_for(params.batch * image_stride, kGrainElements, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const T grad = scale * grad_y[i];
        const bool positive =
            !params.negative_slope || (mask ? (mask[i / 8] >> (i % 8)) & 1 : y[i] > T(0));
        grad_c[i] = positive ? grad : slope * grad;
      }
    });
    return;
  }
  const auto grad_at = [&](int64_t b, int64_t channel, int64_t h, int64_t w) {
    const int64_t o = channel / (r * r);
    const int64_t row = h * r + channel / r % r;
    const int64_t column = w * r + channel % r;
    const T grad = scale * grad_y[b * grad_y_strides[0] + o * grad_y_strides[1] +
                                  row * grad_y_strides[2] + column * grad_y_strides[3]];
    if (!params.negative_slope) return grad;
    const int64_t index =
        b * image_stride + o * channel_stride + row * row_stride + column * column_stride;
    const bool positive = mask ? (mask[index / 8] >> (index % 8)) & 1 : y[index] > T(0);
    return positive ? grad : slope * grad;
  };

  const int64_t rows = params.batch * params.height;
  if (params.channels_last) {
    parallel_for(rows, rows_per_thread(params.width * params.channels),
                 [&](int64_t first, int64_t last) {
                   for (int64_t i = first; i < last; ++i) {
                     T* to = grad_c + i * params.width * params.channels;
                     for (int64_t w = 0; w < params.width; ++w) {
                       for (int64_t channel = 0; channel < params.channels; ++channel) {
                         *to++ = grad_at(i / params.height, channel, i % params.height, w);
                       }
                     }
                   }
                 });
    return;
  }
  parallel_for(rows * params.channels, rows_per_thread(params.width),
               [&](int64_t first, int64_t last) {
                 for (int64_t i = first; i < last; ++i) {
                   const int64_t h = i % params.height, plane = i / params.height;
                   T* to = grad_c + i * params.width;
                   for (int64_t w = 0; w < params.width; ++w) {
                     to[w] = grad_at(plane / params.channels, plane % params.channels, h, w);
                   }
                 }
               });
}

template void epilogue_forward(const EpilogueParams&, const float*, const int64_t*, const float*,
                               const int64_t*, float*, uint8_t*);
template void epilogue_forward(const EpilogueParams&, const double*, const int64_t*, const double*,
                               const int64_t*, double*, uint8_t*);
template void epilogue_backward(const EpilogueParams&, const float*, const int64_t*, const float*,
                                const uint8_t*, bool, float*);
template void epilogue_backward(const EpilogueParams&, const double*, const int64_t*, const double*,
                                const uint8_t*, bool, double*);

}  // namespace dasr::cpu
