#include "capi/src/cuda_plugin.hpp"

#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstring>

#include "core/device_plugin.hpp"
#include "core/plugin_build.hpp"
#include "kernels/cpu/cpu_device.hpp"

namespace kvc::capi {
namespace {

Status take_message(Status status, const char* text) noexcept { return fail(status, "%s", text); }

constexpr PluginHost host = {.fail = take_message};

/// Somebody else's text as a line of a log. What does not fit is left out in front: paths come first, reasons last.
struct Line {
  char text[320];
};
Line one_line(const char* text) {
  constexpr const char* cut = "…";
  Line line = {};
  size_t used = 0;
  if (const size_t n = std::strlen(text); n >= sizeof line.text) {
    used = std::strlen(cut);
    std::memcpy(line.text, cut, used);
    text += n - (sizeof line.text - 1 - used);
    while ((*text & 0xc0) == 0x80) ++text;  // the rest of a letter
  }
  for (; *text != '\0'; ++text)
    line.text[used++] = static_cast<unsigned char>(*text) < ' ' ? '?' : *text;
  return line;
}

struct Path {
  char text[PATH_MAX] = {};
};

/// The backend's in the folder of this library; empty where there is none.
Path beside_this_library() {
  Path path;
  Dl_info here;
  if (dladdr(&host, &here) == 0 || here.dli_fname == nullptr) return {};
  const char* slash = std::strrchr(here.dli_fname, '/');
  if (slash == nullptr) return {};
  const int length = std::snprintf(path.text, sizeof path.text, "%.*s/%s",
                                   static_cast<int>(slash - here.dli_fname), here.dli_fname,
                                   cuda_plugin_name);
  const bool fits = length > 0 && static_cast<size_t>(length) < sizeof path.text;
  return fits && access(path.text, F_OK) == 0 ? path : Path{};
}

struct Place {
  const char* path;
  const char* origin;  // for messages
};

/// The first that is given counts: one that cannot be used is not replaced by another in silence.
Place place_of(const char* library, const Path& beside) {
  if (library != nullptr) return {library, "named by the device's name"};
  const char* named = secure_getenv("KVC_CUDA_PLUGIN");
  if (named != nullptr && named[0] != '\0') return {named, "named by KVC_CUDA_PLUGIN"};
  if (beside.text[0] != '\0') return {beside.text, "found beside libkvc"};
  return {cuda_plugin_name, "looked for by the system's loader"};
}

Status load(const char* named, const DevicePlugin** out) {
  const Path beside = beside_this_library();
  const Place place = place_of(named, beside);
  void* const library = dlopen(place.path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    return fail(Status::backend_unavailable, "CUDA devices need the library libkvc_cuda, %s: %s",
                place.origin,
                one_line(dlerror()).text);  // NOLINT(concurrency-mt-unsafe): a thread has its own
  }
  const auto entry = reinterpret_cast<DevicePluginEntry>(dlsym(library, cuda_plugin_entry));
  const DevicePlugin* const devices = entry != nullptr ? entry(&host) : nullptr;
  dlclose(library);  // it stays: CUDA's threads and exit handlers are in it
  if (devices == nullptr)
    return fail(Status::backend_unavailable,
                "the library %s (%s) has no %s: it is not kvc's backend for CUDA",
                one_line(place.path).text, place.origin, cuda_plugin_entry);
  if (std::strcmp(devices->build, plugin_build) != 0) {
    return fail(Status::backend_unavailable,
                "libkvc_cuda, %s, is of kvc %s, and libkvc is %s: install both from one build",
                place.origin, one_line(devices->build).text, plugin_build);
  }
  *out = devices;
  return Status::ok;
}

}  // namespace

CudaName read_cuda_name(const char* name) {
  if (std::strncmp(name, "cuda", 4) != 0) return {};
  const char* at = name + 4;
  int32_t ordinal = 0;
  if (*at == ':') {
    const size_t n = std::strspn(++at, "0123456789");
    if (n == 0 || n > 4) return {};
    ordinal = static_cast<int32_t>(std::strtol(at, nullptr, 10));
    at += n;
  }
  if (*at == '\0') return {ordinal, nullptr};
  return *at == '@' && at[1] != '\0' ? CudaName{ordinal, at + 1} : CudaName{};
}

Status open_cuda(const CudaName& name, const DeviceOptions& options, std::shared_ptr<Device>* out) {
  const DevicePlugin* devices = nullptr;
  if (Status s = load(name.library, &devices); s != Status::ok) return s;
  std::shared_ptr<Device> cpu;
  const DeviceOptions of_host = {.n_threads = 1, .allocator = options.allocator};
  if (Status s = cpu::cpu_device.open(of_host, &cpu); s != Status::ok) return s;
  return devices->open(name.ordinal, cpu, options.device_allocator, out);
}

int32_t n_cuda_devices() {
  const DevicePlugin* devices = nullptr;
  return load(nullptr, &devices) == Status::ok ? devices->n_devices() : 0;
}

}  // namespace kvc::capi
