#define DASR_OPS_ISA portable
#define DASR_OPS_LANES 4
#include "conv3x3_kernels.h"
