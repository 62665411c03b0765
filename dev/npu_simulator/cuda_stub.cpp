// A stand-in for a function of torch, before which the loader finds it.
//
// The allocators of CUDA and of torch_npu both claim names of settings, among them pinned_reserve_segment_size_mb, and
// since 2.14 torch ends the process at the second claim of a name: torch_npu expects a torch without CUDA. Here each
// claims its names in a set of its own. The settings themselves (PYTORCH_ALLOC_CONF) are not used by these tests.

#include <string>
#include <unordered_set>

namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig {
  static std::unordered_set<std::string> &getMutableKeys();
};
std::unordered_set<std::string> &AcceleratorAllocatorConfig::getMutableKeys() {
  return *new std::unordered_set<std::string>;
}
}  // namespace c10::CachingAllocator
