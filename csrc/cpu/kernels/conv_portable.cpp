#define DASR_OPS_ISA portable
#define DASR_OPS_LANES 4
#include "conv_kernels.h"
