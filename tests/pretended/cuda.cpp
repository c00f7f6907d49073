// A pretended CUDA device for a CPU build of PyTorch. Tensors say device "cuda:0", their memory is the host's, and every
// operation on them runs the CPU's kernel on the same memory. It refuses what CUDA refuses (tensors of two devices, NumPy,
// waits in a capture, streams that race) and reports every operation to a hook: launches, views, copies between host and
// device, waits.
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <functional>
#include <unordered_set>

#include "gpu.h"

namespace {
using torch::jit::Stack;

// ---- the same memory as a tensor of the host, and back ---------------------------------------------------------------

bool ours(const at::Tensor& t) { return t.defined() && t.device().is_cuda(); }

void let_go(void* context) { delete static_cast<at::Tensor*>(context); }

at::Tensor in_form_of(const at::Tensor& form, c10::Storage storage, int64_t offset, c10::DispatchKey key) {
  auto t = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), form.dtype());
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(form.sizes(), form.strides());
  impl->set_storage_offset(offset);
  return t;
}

at::Tensor on_host(const at::Tensor& t) {
  if (!t.numel() && !t.storage().nbytes())
    return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kCPU));
  c10::DataPtr data(t.storage().mutable_data(), new at::Tensor(t), &let_go, c10::Device(at::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), nullptr, false);
  return in_form_of(t, std::move(storage), t.storage_offset(), c10::DispatchKey::CPU);
}

at::Tensor on_device(const at::Tensor& form, c10::Storage storage, int64_t offset) {
  return in_form_of(form, std::move(storage), offset, c10::DispatchKey::CUDA);
}

struct Adopted { at::Tensor tensor; int64_t bytes; };
void drop(void* context) {
  auto* a = static_cast<Adopted*>(context);
  held -= a->bytes;
  order::release(a->tensor.storage().data());
  delete a;
}

at::Tensor adopt(const at::Tensor& host) {                 // what a CPU kernel made becomes the device's
  int64_t n = host.storage().nbytes();
  take(n);
  if (n) order::allocate(host.storage().data(), capturing >= 0 || replaying);
  c10::DataPtr data(host.storage().mutable_data(), new Adopted{host, n}, &drop, GPU);
  c10::Storage storage(c10::Storage::use_byte_size_t(), n, std::move(data), &allocator, true);
  return on_device(host, std::move(storage), host.storage_offset());
}

// Apply `f` to the tensors in a value.
template <class F> c10::IValue mapped(const c10::IValue& v, F f) {
  if (v.isTensor()) return f(v.toTensor());
  if (v.isTensorList()) {
    std::vector<at::Tensor> list;
    for (const at::Tensor& t : v.toTensorList()) list.push_back(f(t));
    return c10::IValue(list);
  }
  if (v.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (std::optional<at::Tensor> t : v.toOptionalTensorList())
      list.push_back(t ? std::optional<at::Tensor>(f(*t)) : t);
    return c10::IValue(list);
  }
  return v;
}

// ---- pretended graphs: the launches of a capture, done again on the same memory by a replay --------------------------

struct Graph {
  std::vector<std::function<void()>> launches;
  int stream = 0;                                          // on which it was captured
  std::vector<std::string> shares;                         // with other graphs: no two of them may run at a time
};
auto& graphs = *new std::map<int, Graph>;                  // never freed as a whole: Python may be gone by then
int last_graph = 0;
std::mutex noting;
std::vector<std::pair<at::Tensor, at::Tensor>> overwritten;   // a capture computes nothing: what it wrote is put back
std::vector<at::Tensor> made;                              // and its results are not there yet

void note(std::function<void()> again) {
  std::lock_guard<std::mutex> lock(noting);
  TORCH_CHECK(order::current == graphs[capturing].stream, "an operation on another stream than that of the capture");
  graphs[capturing].launches.push_back(std::move(again));
}

void refuse_in_capture(const std::string& name) {
  TORCH_CHECK(!recording(), "CUDA error: operation not permitted when stream is capturing (", name, ")");
}

c10::IValue by_address(const c10::IValue& v) {             // a parameter may be pointed elsewhere afterwards
  return mapped(v, [](const at::Tensor& t) { return ours(t) ? on_device(t, t.storage(), t.storage_offset()) : t; });
}

// What an operation reads and writes on its stream; in a capture, when the graph is replayed.
void uses(const std::string& name, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes) {
  if (recording()) return;
  auto addresses = [](const std::vector<at::Tensor>& tensors) {
    std::vector<const void*> found;
    for (auto& t : tensors) if (ours(t) || is_pinned(t.storage().data())) found.push_back(t.storage().data());
    return found;
  };
  order::operation(name, addresses(reads), addresses(writes));
}

bool writable(const at::Tensor& t) {
  for (int64_t k = 0; k < t.dim(); ++k)
    if (t.size(k) > 1 && t.stride(k) == 0) return false;   // expanded
  return true;
}

// ---- every operation -------------------------------------------------------------------------------------------------

// Those that read a result on the host, to know the shape of their output or to return a number.
const std::unordered_set<std::string> WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::is_nonzero", "aten::linalg_svd", "aten::_linalg_svd",
    "aten::_linalg_eigh", "aten::_linalg_check_errors", "aten::bincount"};
const std::unordered_set<std::string> TAKE_INDICES_OF_THE_HOST = {
    "aten::index", "aten::_index_put_impl_", "aten::index_put_"};

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name();
  const size_t n = schema.arguments().size(), first = stack->size() - n;
  const std::vector<c10::IValue> given(stack->end() - n, stack->end());
  std::vector<at::Tensor> inputs, hosts;                   // the device's, and what the CPU's kernel gets instead
  std::vector<at::Tensor> reads, writes;
  bool waits = WAITS.count(name), writing = false;
  auto lower = [&](const at::Tensor& t) -> at::Tensor {
    if (!t.defined()) return t;
    if (!ours(t)) {
      if (!t.dim()) return t;                              // a number
      TORCH_CHECK(TAKE_INDICES_OF_THE_HOST.count(name), "Expected all tensors to be on the same device, but found at"
                  " least two devices, cuda:0 and cpu! (", name, ")");
      refuse_in_capture(name);
      tell(UPLOAD, name + " (index on the host)", t.nbytes());
      return t;
    }
    waits = waits || (t.scalar_type() == at::kBool && name == "aten::index");
    inputs.push_back(t);
    hosts.push_back(on_host(t));
    (writing ? writes : reads).push_back(t);
    return hosts.back();
  };
  for (size_t i = 0; i < n; ++i) {
    auto& v = (*stack)[first + i];
    writing = schema.arguments()[i].alias_info() && schema.arguments()[i].alias_info()->isWrite();
    v = v.isDevice() && v.toDevice().is_cuda() ? c10::IValue(c10::Device(at::kCPU)) : mapped(v, lower);
  }
  if (waits) refuse_in_capture(name);
  if (recording() && schema.is_mutable()) {
    std::lock_guard<std::mutex> lock(noting);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (writable(inputs[i])) overwritten.emplace_back(by_address(inputs[i]).toTensor(), hosts[i].clone());
  }
  std::vector<std::vector<int64_t>> shapes;
  for (auto& h : hosts) shapes.push_back(h.sizes().vec());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);

  for (size_t i = 0; i < hosts.size(); ++i)                // an out= argument that was given empty
    if (hosts[i].sizes().vec() != shapes[i]) {
      at::Tensor fresh = adopt(hosts[i].clone());
      auto* impl = inputs[i].unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(fresh.storage());
      impl->set_sizes_and_strides(fresh.sizes(), fresh.strides());
      impl->set_storage_offset(0);
    }
  bool views = !schema.is_mutable() && !inputs.empty() && !schema.returns().empty();
  int64_t bytes = 0;
  for (auto& t : inputs) bytes += t.nbytes();
  auto raise = [&](const at::Tensor& t) -> at::Tensor {
    if (!t.defined()) return t;
    for (size_t i = 0; i < hosts.size(); ++i) {
      if (t.unsafeGetTensorImpl() == hosts[i].unsafeGetTensorImpl()) return inputs[i];
      char* from = static_cast<char*>(inputs[i].storage().mutable_data());
      char* p = static_cast<char*>(t.data_ptr());
      if (t.nbytes() && p >= from && p < from + inputs[i].storage().nbytes())
        return on_device(t, inputs[i].storage(), (p - from) / t.element_size());
    }
    views = false;
    bytes += t.nbytes();
    writes.push_back(adopt(t));
    return writes.back();
  };
  const size_t result = stack->size() - schema.returns().size();
  for (size_t i = result; i < stack->size(); ++i) {
    auto& v = (*stack)[i];
    views = views && (v.isTensor() || v.isTensorList());
    v = mapped(v, raise);
  }
  if (!views) uses(name, reads, writes);
  if (waits) order::host_waits(order::current);
  if (!views && recording()) {
    std::vector<c10::IValue> fixed, outs;
    for (auto& v : given) fixed.push_back(by_address(v));
    for (size_t i = result; i < stack->size(); ++i) outs.push_back(by_address((*stack)[i]));
    if (!schema.is_mutable()) {
      std::lock_guard<std::mutex> lock(noting);
      for (auto& v : outs) mapped(v, [](const at::Tensor& t) { if (t.defined()) made.push_back(t); return t; });
    }
    note([op, name, fixed, outs] {
      Stack again(fixed);
      run(op, c10::DispatchKeySet(c10::DispatchKey::CUDA), &again);
      std::vector<at::Tensor> to, from;
      for (auto& v : outs) mapped(v, [&](const at::Tensor& t) { to.push_back(t); return t; });
      for (auto& v : again) mapped(v, [&](const at::Tensor& t) { from.push_back(t); return t; });
      for (size_t i = 0; i < to.size(); ++i)
        if (to[i].defined() && to[i].data_ptr() != from[i].data_ptr()) {
          uses(name, {}, {to[i]});
          on_host(to[i]).copy_(on_host(from[i]));
        }
    });
  }
  const auto& overload = schema.overload_name();
  tell(views ? VIEW : waits ? WAIT : LAUNCH, overload.empty() ? name : name + "." + overload, bytes);
}

// ---- operations of their own -----------------------------------------------------------------------------------------

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  auto t = at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator,
                                     c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
  tell(ALLOC, "aten::empty", t.nbytes());
  return t;
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  auto t = at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
                                             c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
  tell(ALLOC, "aten::empty_strided", t.nbytes());
  return t;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  const bool across = ours(self) != ours(src);
  const bool asynchronous = across && non_blocking && is_pinned(ours(self) ? src.data_ptr() : self.data_ptr());
  if (across && !asynchronous) refuse_in_capture("copy between host and device from pageable memory");
  if (recording()) {
    { std::lock_guard<std::mutex> lock(noting); overwritten.emplace_back(by_address(self).toTensor(), (ours(self) ? on_host(self) : self).clone()); }
    note([self = by_address(self).toTensor(), src = by_address(src).toTensor()] {
      uses("aten::copy_", {src}, {self});
      (ours(self) ? on_host(self) : self).copy_(ours(src) ? on_host(src) : src);
    });
  }
  uses("aten::copy_", {src}, {self});
  if (across && !asynchronous) order::host_waits(order::current);
  at::Tensor to = ours(self) ? on_host(self) : self, from = ours(src) ? on_host(src) : src;
  { c10::impl::ExcludeDispatchKeyGuard g(c10::DispatchKey::CUDA); to.copy_(from); }
  Kind kind = !across ? LAUNCH : ours(self) ? UPLOAD : DOWNLOAD;
  tell(kind, asynchronous ? "aten::copy_ (asynchronous)" : "aten::copy_", self.nbytes());
  return self;
}

at::Scalar local_scalar(const at::Tensor& self) {
  refuse_in_capture("aten::_local_scalar_dense");
  tell(WAIT, "aten::_local_scalar_dense", self.nbytes());
  uses("aten::_local_scalar_dense", {self}, {});
  order::host_waits(order::current);
  return on_host(self).item();
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto s = C10_AS_INTARRAYREF_SLOW(size);
  size_t bytes = self.element_size();
  for (auto k : s) bytes *= k;
  auto* impl = self.unsafeGetTensorImpl();
  if (bytes > self.storage().nbytes())
    impl->set_storage_keep_dtype(
        c10::Storage(c10::Storage::use_byte_size_t(), bytes, allocator.allocate(bytes), &allocator, true));
  impl->set_sizes_contiguous(s);
  return self;
}

at::Tensor& set_(at::Tensor& self, c10::Storage s, c10::SymInt offset, c10::SymIntArrayRef size,
                 c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(s);
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  impl->set_storage_offset(offset.expect_int());
  return self;
}

at::Tensor& set_whole_(at::Tensor& self, c10::Storage s) {
  const int64_t size = s.nbytes() / self.element_size();
  return set_(self, std::move(s), 0, {size}, {1});
}

// PyTorch takes this cell on CUDA without cuDNN; there is no kernel of it for CPUs. Gates are in the order i, f, g, o.
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cx, const std::optional<at::Tensor>& b_ih,
    const std::optional<at::Tensor>& b_hh) {
  at::Tensor gates = on_host(input) + on_host(hidden);
  for (auto* b : {&b_ih, &b_hh}) if (*b && (*b)->defined()) gates = gates + on_host(**b);
  auto part = gates.chunk(4, 1);
  at::Tensor i = part[0].sigmoid(), f = part[1].sigmoid(), g = part[2].tanh(), o = part[3].sigmoid();
  at::Tensor cy = f * on_host(cx) + i * g, hy = o * cy.tanh();
  tell(LAUNCH, "aten::_thnn_fused_lstm_cell", input.nbytes());
  std::vector<at::Tensor> made = {adopt(hy), adopt(cy), adopt(at::cat({i, f, g, o}, 1))};
  uses("aten::_thnn_fused_lstm_cell", {input, hidden, cx}, made);
  return {made[0], made[1], made[2]};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const std::optional<at::Tensor>& grad_hy, const std::optional<at::Tensor>& grad_cy, const at::Tensor& cx,
    const at::Tensor& cy, const at::Tensor& workspace, bool has_bias) {
  auto part = on_host(workspace).chunk(4, 1);
  at::Tensor i = part[0], f = part[1], g = part[2], o = part[3], t = on_host(cy).tanh();
  auto or_zeros = [&](const std::optional<at::Tensor>& x) { return x && x->defined() ? on_host(*x) : at::zeros_like(t); };
  at::Tensor dh = or_zeros(grad_hy), dc = or_zeros(grad_cy) + dh * o * (1 - t * t);
  at::Tensor gates = at::cat({dc * g * i * (1 - i), dc * on_host(cx) * f * (1 - f), dc * i * (1 - g * g),
                              dh * t * o * (1 - o)}, 1);
  tell(LAUNCH, "aten::_thnn_fused_lstm_cell_backward", workspace.nbytes());
  uses("aten::_thnn_fused_lstm_cell_backward", {cx, cy, workspace}, {});
  return {adopt(gates), adopt(dc * f), has_bias ? adopt(gates.sum(0)) : at::Tensor()};
}
}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_);
  m.impl("set_.source_Storage", &set_whole_);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  for (auto name : {"convolution", "convolution_backward", "native_group_norm", "native_layer_norm"})   // one launch each
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
}

extern "C" {
void pretended_hook(Hook h) { hook = h; }
int64_t pretended_held() { return held; }
int64_t pretended_peak(int reset) { int64_t p = peak; if (reset) peak = held.load(); return p; }

int pretended_stream(int number) { return number < 0 ? order::current : std::exchange(order::current, number); }
void pretended_wait(int stream) { wait_for(stream, "synchronize"); }
void pretended_stream_waits(int stream, int other) { order::wait(stream, order::now(other)); }
void pretended_record_event(int event, int stream) { order::events[event] = order::now(stream); }
void pretended_event_waits(int event, int stream) { order::wait(stream, order::events[event]); }
void pretended_record_stream(const void* p, int stream) { order::record_stream(p, stream); }

int pretended_capture(int pool) {
  capturing = ++last_graph;
  Graph& graph = graphs[last_graph];
  graph.stream = order::current;
  graph.shares = {"graph " + std::to_string(last_graph), "the pool of graphs " + std::to_string(pool),
                  "the workspace of cuBLAS for captures on stream " + std::to_string(order::current)};
  return last_graph;
}
void pretended_capture_end() {
  capturing = -1;
  at::AutoDispatchBelowADInplaceOrView guard;
  for (auto& t : made) if (t.is_floating_point() && writable(t)) on_host(t).fill_(std::nan(""));
  for (auto it = overwritten.rbegin(); it != overwritten.rend(); ++it)
    if (it->first.sizes() == it->second.sizes())           // else it was given empty, for the result
      (ours(it->first) ? on_host(it->first) : it->first).copy_(it->second);
  overwritten.clear();
  made.clear();
}
int64_t pretended_graph_size(int graph) { return graphs[graph].launches.size(); }
void pretended_graph_drop(int graph) { graphs.erase(graph); }
const char* pretended_replay(int graph) {                  // what went wrong, if anything
  static thread_local std::string wrong;
  wrong.clear();
  tell(LAUNCH, "graph replay", 0);
  at::AutoDispatchBelowADInplaceOrView guard;
  replaying = true;
  try {
    order::replay(graphs[graph].shares);
    for (auto& again : graphs[graph].launches) again();
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  replaying = false;
  return wrong.empty() ? nullptr : wrong.c_str();
}
}
