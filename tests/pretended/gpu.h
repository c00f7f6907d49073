// The memory of the pretended GPU, and what PyTorch asks about it: an allocator, a guard, and CUDA's hooks.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "order.h"
namespace {
enum Kind { LAUNCH = 0, VIEW = 1, ALLOC = 2, WAIT = 3, UPLOAD = 4, DOWNLOAD = 5 };
using Hook = void (*)(int kind, const char* name, int64_t bytes);
const c10::Device GPU(c10::DeviceType::CUDA, 0);
std::atomic<Hook> hook{nullptr};
std::atomic<bool> replaying{false};
std::atomic<int> capturing{-1};                            // number of the graph
std::atomic<int64_t> held{0}, peak{0};

bool recording() { return capturing >= 0 && !replaying; }

void tell(Kind kind, const std::string& name, int64_t bytes) {
  if (replaying) return;                                   // a replay is one launch
  if (Hook h = hook.load()) h(kind, name.c_str(), bytes);
}

// ---- memory ----------------------------------------------------------------------------------------------------------

void take(int64_t n) {
  int64_t now = held += n, before = peak.load();
  while (now > before && !peak.compare_exchange_weak(before, now)) {}
}

struct Block { void* at; int64_t bytes; };

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (!n) return {nullptr, nullptr, &nothing, GPU};
    void* p = std::aligned_alloc(64, (n + 63) / 64 * 64);
    TORCH_CHECK(p, "out of memory");
    take(n);
    order::allocate(p, capturing >= 0 || replaying);
    return {p, new Block{p, static_cast<int64_t>(n)}, &release, GPU};
  }
  static void nothing(void*) {}
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    held -= block->bytes;
    order::release(block->at);
    std::free(block->at);
    delete block;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} allocator;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &allocator);

std::mutex pinning;
auto& pinned = *new std::map<const char*, int64_t>;        // start and size; never freed: static order at exit

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = std::aligned_alloc(64, std::max<size_t>(64, (n + 63) / 64 * 64));
    std::lock_guard<std::mutex> lock(pinning);
    pinned[static_cast<char*>(p)] = n;
    order::allocate(p, true);                              // given away again after all copies of it
    return {p, p, &release, c10::Device(at::kCPU)};
  }
  static void release(void* p) {
    std::lock_guard<std::mutex> lock(pinning);
    pinned.erase(static_cast<char*>(p));
    order::release(p);
    std::free(p);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} pinned_allocator;

bool is_pinned(const void* p) {
  std::lock_guard<std::mutex> lock(pinning);
  auto it = pinned.upper_bound(static_cast<const char*>(p));
  if (it == pinned.begin()) return false;
  --it;
  return static_cast<const char*>(p) < it->first + std::max<int64_t>(it->second, 1);
}

// ---- the device that PyTorch asks about ------------------------------------------------------------------------------

void wait_for(int stream, const char* name) {              // below 0: for all
  tell(WAIT, name, 0);
  order::host_waits(stream);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Device getDevice() const override { return GPU; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(order::current); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream exchangeStream(c10::Stream s) const override { return stream(std::exchange(order::current, s.id())); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream& s, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new order::Clock;
    *static_cast<order::Clock*>(*event) = order::now(s.id());
  }
  void block(void* event, const c10::Stream& s) const override {
    if (event) order::wait(s.id(), *static_cast<order::Clock*>(event));
  }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<order::Clock*>(event);
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& s) const override { wait_for(s.id(), "synchronizeStream"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { wait_for(-1, "synchronizeDevice"); }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& s) const override {
    order::record_stream(data.get(), s.id());
  }
  static c10::Stream stream(int id) { return c10::Stream(c10::Stream::UNSAFE, GPU, id); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}  // namespace

namespace at {
struct CUDAHooks final : CUDAHooksInterface {              // read when PyTorch first asks for CUDA, as it is imported
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void deviceSynchronize(c10::DeviceIndex) const override { wait_for(-1, "deviceSynchronize"); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
