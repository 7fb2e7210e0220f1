#define DASR_OPS_ISA avx512
#define DASR_OPS_LANES 16
#include "conv_kernels.h"
