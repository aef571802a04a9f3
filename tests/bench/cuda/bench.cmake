# kvc_bench_cuda (make bench-cuda). What it has beside this folder: a GPU's memory, streams and graphs.
file(GLOB KVC_CUDA_BENCH_SOURCES CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/bench/cuda/*.cpp")
list(APPEND KVC_CUDA_BENCH_SOURCES "${PROJECT_SOURCE_DIR}/tests/cuda/gpu.cpp")
if(KVC_BUILD_CUDA AND KVC_CUDA_BENCH_SOURCES)
  kvc_compile_cuda(objects "${PROJECT_SOURCE_DIR}/tests/bench/cuda/roofs.cu")
  add_executable(kvc_bench_cuda EXCLUDE_FROM_ALL ${KVC_CUDA_BENCH_SOURCES} ${objects})
  kvc_use_gpu(kvc_bench_cuda)
endif()
