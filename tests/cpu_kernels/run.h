// Runs a call, with one thread or several.
#pragma once

#include "call.h"

// Everything is NaN, or ones in every bit, until a kernel writes it.
struct Results {
  Array<float> output, grad_input, grad_weight, grad_routing, grad_bias;
  Array<uint8_t> sign_mask;
};

enum class Threads { kOne, kThree };

Results run(const Call& call, Threads threads, const Sabotage& sabotage);
