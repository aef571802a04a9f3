#include "tests/cuda/gpu.hpp"

#include <cstdio>
#include <cstdlib>

namespace gpu {

namespace runtime = kvc::cuda::runtime;

void fail(const std::string& what) {
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  std::printf("%s; last message: %s\n", what.c_str(), message);
  std::exit(1);
}
void need(kvc::cuda::Error error, const char* call) {
  if (error != kvc::cuda::Error::none) fail(std::string(call) + ": " + kvc::cuda::name_of(error));
}
void must(kvc_status status, const char* call) {
  if (status != KVC_OK) fail(std::string(call) + ": " + kvc_status_name(status));
}

Memory::Memory(size_t bytes) : bytes_(bytes) {
  void* block = nullptr;
  need(runtime::allocate(bytes, &block), "allocate");
  data_ = static_cast<std::byte*>(block);
}
Memory::~Memory() { need(runtime::release(data_), "release"); }

void Memory::write(const void* from, size_t bytes) const {
  need(runtime::copy_to_device(data_, from, bytes, nullptr), "copy to the GPU");
  need(runtime::synchronize(nullptr), "synchronize");
}
void Memory::read(void* to, size_t bytes) const {
  need(runtime::copy_to_host(to, data_, bytes, nullptr), "copy to the host");
  need(runtime::synchronize(nullptr), "synchronize");
}

kvc_tensor tensor(void* data, bool on_gpu, uint32_t dtype, const std::vector<int64_t>& shape) {
  kvc_tensor made;
  must(kvc_tensor_dense(data, dtype, static_cast<int32_t>(shape.size()), shape.data(), &made),
       "tensor");
  if (on_gpu) made.device_type = KVC_CUDA;
  return made;
}

}  // namespace gpu
