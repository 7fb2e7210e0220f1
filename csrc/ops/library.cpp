#include <torch/csrc/stable/library.h>

#include "ops/schemas.h"

STABLE_TORCH_LIBRARY(dasr_ops, m) {
  for (const char* schema : dasr::kSchemas) m.def(schema);
}
