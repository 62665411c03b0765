// Arithmetic for a card whose memory is host memory (see acl_stub.c).
//
// Every operator that torch_npu implements with CANN is registered anew with one boxed kernel. It makes CPU tensors that
// share the device tensors' memory, runs the CPU kernel on them and gives the result back as device tensors. Devices,
// allocator, storages, dispatch, schemas and torch_npu's Python patches stay the real ones.
//
// Python: torch.ops.load_library(...), torch.ops.host_npu.install([...]), .count(True), .calls().

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/clone_native.h>
#include <ATen/ops/contiguous_native.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using c10::IValue;
using Stack = torch::jit::Stack;

std::atomic<bool> counting = false;
std::mutex counts_lock;
c10::Dict<std::string, int64_t> counts;

// Operators whose arguments may be on several devices.
const std::set<std::string> MIXED = {"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize",
                                     "aten::index_put_", "aten::_index_put_impl_"};

bool on_npu(const at::Tensor &tensor) { return tensor.defined() && tensor.device().is_privateuseone(); }

at::Tensor as_cpu(const at::Tensor &tensor) {
  at::AutoDispatchBelowADInplaceOrView guard;
  auto options = at::TensorOptions().dtype(tensor.scalar_type()).device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void *) {}, options);
}

at::Tensor to_npu(const at::Tensor &tensor) {
  if (!tensor.defined()) return tensor;
  auto options = tensor.options().device(at::Device(at::kPrivateUse1, 0));
  auto copy = at::empty_strided(tensor.sizes(), tensor.strides(), options);
  if (tensor.numel()) as_cpu(copy).copy_(tensor);
  return copy;
}

// The arguments of one call while they are CPU tensors.
struct Arguments {
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // device tensor, CPU stand-in
  bool device = false, host = false;                     // tensors of each that were met; a scalar may be anywhere

  at::Tensor convert(const at::Tensor &tensor, bool written) {
    if (!on_npu(tensor)) {
      host |= tensor.defined() && tensor.dim() > 0 && tensor.device().is_cpu();
      return tensor;
    }
    device = true;
    // An empty tensor that is written to may be an out= argument that is going to grow.
    bool grows = written && tensor.numel() == 0;
    auto stand_in = grows ? at::empty({0}, tensor.options().device(at::kCPU)) : as_cpu(tensor);
    pairs.emplace_back(tensor, stand_in);
    return stand_in;
  }

  IValue convert(const IValue &value, bool written) {
    if (value.isTensor()) return convert(value.toTensor(), written);
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor &tensor : value.toTensorVector()) list.push_back(convert(tensor, written));
      return list;
    }
    if (value.isOptionalTensorList()) {  // indices, which may be on the CPU
      c10::List<std::optional<at::Tensor>> list;
      for (const auto &entry : value.toOptionalTensorList()) {
        std::optional<at::Tensor> tensor = entry;
        if (tensor.has_value() && on_npu(*tensor)) tensor = convert(*tensor, false);
        list.push_back(tensor);
      }
      return list;
    }
    if (value.isDevice()) return at::Device(at::kCPU);
    if (value.isGenerator() && value.toGenerator().device().is_privateuseone()) return IValue();
    return value;
  }

  void grow() {
    for (auto &[tensor, stand_in] : pairs) {
      if (tensor.numel() == 0 && stand_in.numel() > 0) {
        tensor.resize_(stand_in.sizes());
        as_cpu(tensor).copy_(stand_in);
      }
    }
  }
};

void run_on_cpu(const c10::OperatorHandle &op, c10::DispatchKeySet, Stack *stack) {
  const auto &schema = op.schema();
  if (counting) {
    std::lock_guard<std::mutex> guard(counts_lock);
    counts.insert_or_assign(schema.name(), counts.contains(schema.name()) ? counts.at(schema.name()) + 1 : 1);
  }
  size_t size = schema.arguments().size(), first = stack->size() - size;
  std::vector<IValue> given(stack->begin() + first, stack->end());
  Arguments arguments;
  for (size_t i = 0; i < size; i++) {
    const auto *alias = schema.arguments()[i].alias_info();
    (*stack)[first + i] = arguments.convert(given[i], alias && alias->isWrite());
  }
  TORCH_CHECK(!(arguments.device && arguments.host) || MIXED.count(schema.name()),
              "Expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu! (",
              schema.name(), ")");
  op.callBoxed(stack);
  arguments.grow();

  size_t results = schema.returns().size(), result = stack->size() - results;
  for (size_t r = 0; r < results; r++) {
    auto &value = (*stack)[result + r];
    const auto *alias = schema.returns()[r].alias_info();
    if (alias && alias->isWrite()) {  // in place or out=: the caller's own tensor
      for (size_t i = 0; i < size; i++) {
        const auto *other = schema.arguments()[i].alias_info();
        if (other && other->beforeSets() == alias->beforeSets()) {
          value = given[i];
          break;
        }
      }
    } else if (value.isTensor()) {
      value = to_npu(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor &tensor : value.toTensorVector()) list.push_back(to_npu(tensor));
      value = list;
    }
  }
}

std::vector<c10::RegistrationHandleRAII> handles;  // a registration lasts as long as its handle

void implement(const c10::OperatorName &name, c10::KernelFunction kernel) {
  auto &dispatcher = c10::Dispatcher::singleton();
  handles.push_back(dispatcher.registerImpl(name, c10::DispatchKey::PrivateUse1, std::move(kernel), std::nullopt,
                                            nullptr, "host_npu"));
}

// Register the kernel for all operators that torch_npu implements, except `keep`, views and the three copies below.
std::vector<std::string> install(const std::vector<std::string> &keep) {
  static const std::set<std::string> COPIES = {"aten::_to_copy", "aten::clone", "aten::contiguous"};
  std::set<std::string> kept(keep.begin(), keep.end());
  std::vector<std::string> installed;
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const auto &name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0 && name.name.rfind("npu::", 0) != 0) continue;
    auto op = dispatcher.findSchema(name);
    if (!op.has_value() || !op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) continue;
    std::string full = name.name + (name.overload_name.empty() ? "" : "." + name.overload_name);
    if (COPIES.count(name.name) || kept.count(name.name) || kept.count(full)) continue;
    bool view = false;
    for (const auto &value : op->schema().returns()) view |= value.alias_info() && !value.alias_info()->isWrite();
    if (view) continue;
    implement(name, c10::KernelFunction::makeFromBoxedFunction<&run_on_cpu>());
    installed.push_back(full);
  }
  // PyTorch's own, which come down to empty tensors and copy_.
  implement({"aten::_to_copy", ""}, c10::KernelFunction::makeFromUnboxedRuntimeFunction(&at::native::_to_copy));
  implement({"aten::clone", ""}, c10::KernelFunction::makeFromUnboxedRuntimeFunction(&at::native::clone));
  implement({"aten::contiguous", ""}, c10::KernelFunction::makeFromUnboxedRuntimeFunction(&at::native::contiguous));
  return installed;
}

void count(bool wanted) {
  std::lock_guard<std::mutex> guard(counts_lock);
  counting = wanted;
  if (wanted) counts.clear();
}

c10::Dict<std::string, int64_t> calls() {
  std::lock_guard<std::mutex> guard(counts_lock);
  return counts.copy();
}

}  // namespace

TORCH_LIBRARY(host_npu, library) {
  library.def("install(str[] keep) -> str[]", [](const std::vector<std::string> &keep) { return install(keep); });
  library.def("count(bool wanted) -> ()", &count);
  library.def("calls() -> Dict(str, int)", &calls);
}
