#include "bench/gpu_check/parts.h"
#include "forge/base/error.h"

// An emulator's times say nothing.
namespace forge::gpu_check {

bool measure_speed() { fail("speed is measured on a GPU"); }

}  // namespace forge::gpu_check
