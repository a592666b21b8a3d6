#include "bench/gpu_check/parts.h"
#include "forge/base/error.h"

// An emulator's times say nothing, and it has no graphs.
namespace forge::gpu_check {

bool check_graph() { fail("graphs are captured on a GPU"); }
bool measure_speed() { fail("speed is measured on a GPU"); }
bool measure_hopper() { return measure_speed(); }

}  // namespace forge::gpu_check
