// Memory that a kernel is about to write for the first time.
#pragma once

#include <cstddef>

namespace dasr {
namespace cpu {

// Asks for huge pages where `bytes` are many: a fault for each 4 KiB of a large fresh output costs
// as much as its convolution. A hint, without effect where the system does not know it.
void advise_huge_pages(void* data, std::size_t bytes);

}  // namespace cpu
}  // namespace dasr
