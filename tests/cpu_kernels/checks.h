// What must hold of the results of a call. Each check returns what is wrong, or nothing.
#pragma once

#include <string>

#include "reference.h"
#include "run.h"

// The largest errors so far, as parts of what is allowed, and the seeds of their calls.
struct Worst {
  struct Error {
    double value = 0.0;
    uint64_t seed = 0;
  };
  Error output, precise, gradient;
};

std::string check_same_bits(const Results& alone, const Results& threads);

std::string check_values(const Call& call, const Results& results, const Reference& ref,
                         Worst& worst);

// For input or gradients with NaN and infinities. NaN stays NaN, through ReLU too; infinities stay
// or become NaN. All other values are right, except within a Winograd tile of such a one, where
// they may be NaN.
std::string check_not_finite_output(const Call& call, const Results& results, const Reference& ref);
std::string check_not_finite_grad_input(const Call& call, const Results& results,
                                        const Reference& ref);
