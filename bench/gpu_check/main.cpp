// What a GPU makes of the kernels: their bits beside those of plain loops, the error of their gradients, their speed.
//
//   gpu_check bits|gradient|graph|hopper|speed [--small]      rows of JSON on standard output; 1 where something is
//   wrong
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "bench/gpu_check/parts.h"

int main(int argc, char** argv) {
  using namespace forge::gpu_check;
  const std::string part = argc > 1 ? argv[1] : "";
  const bool small = argc > 2 && std::strcmp(argv[2], "--small") == 0;
  try {
    if (part == "bits") return check_bits(small) ? EXIT_SUCCESS : EXIT_FAILURE;
    if (part == "gradient") return check_gradient(small) ? EXIT_SUCCESS : EXIT_FAILURE;
    if (part == "graph") return check_graph() ? EXIT_SUCCESS : EXIT_FAILURE;
    if (part == "hopper") return check_hopper(small) ? EXIT_SUCCESS : EXIT_FAILURE;
    if (part == "speed") return measure_speed() ? EXIT_SUCCESS : EXIT_FAILURE;
    std::cerr << "gpu_check bits|gradient|graph|hopper|speed [--small]\n";
  } catch (const std::exception& error) {
    Row(part).add("error", error.what());
  }
  return EXIT_FAILURE;
}
