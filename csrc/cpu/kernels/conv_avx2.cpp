#define DASR_OPS_ISA avx2
#define DASR_OPS_LANES 8
#include "conv_kernels.h"
