#include "forge/kernels/rule_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <map>
#include <mutex>

#include "forge/base/error.h"
#include "forge/rules/registry.h"

namespace forge {
namespace {

struct Loaded {
  std::vector<std::string> names;
  std::string refusal;
};

// Its static variables register what it has, once.
void* open(const std::string& path) {
  void* library = dlopen(std::filesystem::absolute(path).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("rule library ", path, ": ", dlerror());
  return library;
}

}  // namespace

std::vector<std::string> load_rule_library(const std::string& path) {
  static std::mutex mutex;
  static std::map<void*, Loaded> libraries;
  std::lock_guard lock(mutex);
  std::size_t before = optimizers().size();
  void* library = open(path);
  auto [entry, is_new] = libraries.try_emplace(library);
  Loaded& loaded = entry->second;
  if (is_new) {
    loaded.refusal = take_refusal();
    std::vector<const OptimizerInfo*> now = optimizers();
    for (std::size_t i = before; i < now.size(); ++i) loaded.names.push_back(now[i]->name);
  }
  check(loaded.refusal.empty(), "rule library ", path, ": ", loaded.refusal);
  check(!loaded.names.empty(), "rule library ", path,
        " registers no optimizer; end the rule's file with FORGE_REGISTER_OPTIMIZER(Options, Rule)");
  return loaded.names;
}

}  // namespace forge
