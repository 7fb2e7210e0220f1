// What a call must give, in double precision, by loops that follow the definitions.
#pragma once

#include <cstdint>
#include <vector>

#include "call.h"

// `size` is the root of the sum of the squared terms that a value is the sum of: rounding errors
// are in proportion to it even where the terms cancel.
struct Values {
  std::vector<double> value, size;

  explicit Values(int64_t n = 0) : value(n), size(n) {}
};

struct Reference {
  // Of the products of a tap and a pixel, the part where the pixel is inside the image.
  double coverage = 1.0;
  Values convolution;            // [B, O, H', W'], before activation and pixel shuffle
  Values output;                 // [B, C, H'r, W'r]
  std::vector<double> gradient;  // [B, O, H', W'], of the convolution's result
  Values grad_input;             // [B, I, H, W]
  Values grad_weight, grad_routing, grad_bias;
};

Reference compute_reference(const Call& call, const Sabotage& sabotage);
