# libkvc_cuda, the backend for NVIDIA's GPUs (docs/CUDA.md). nvcc compiles the kernels alone, by commands of its own; CMake knows
# no language CUDA here, because its modules do not find every toolkit that nvcc comes from.

# Of core what the backend calls; its messages are libkvc's (plugin.cpp).
set(KVC_CUDA_CORE_SOURCES "${PROJECT_SOURCE_DIR}/core/base/messages.cpp" "${PROJECT_SOURCE_DIR}/core/base/storage.cpp")

# What makes a library a plugin: one export, and nothing that a program has to bring. `map` lists the exports.
function(kvc_make_plugin name map)
  set_target_properties(${name} PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINK_DEPENDS "${map}")
  target_link_options(${name} PRIVATE "LINKER:--version-script=${map}" LINKER:-z,relro LINKER:-z,now)
  if(NOT (KVC_SANITIZE AND CMAKE_CXX_COMPILER_ID MATCHES "Clang"))
    target_link_options(${name} PRIVATE LINKER:-z,defs)
  endif()
endfunction()

set(KVC_CUDA AUTO CACHE STRING "Build libkvc_cuda: ON, OFF, or AUTO: where nvcc is found")
set_property(CACHE KVC_CUDA PROPERTY STRINGS AUTO ON OFF)
option(KVC_CUDA_ALL "Also compile kernels for GPUs that run those of others, a little slower: sm_86, 89, 100, 120" OFF)
set(least_nvcc 13.0)

# Sets KVC_NVCC and KVC_CUDA_HOME, or `why_not`.
macro(kvc_find_nvcc)
  set(why_not "")
  set(hints "${PROJECT_SOURCE_DIR}/build/cuda-toolkit/bin") # make cuda-toolkit
  if(NOT "$ENV{CUDA_HOME}" STREQUAL "")
    list(PREPEND hints "$ENV{CUDA_HOME}/bin")
  endif()
  find_program(KVC_NVCC nvcc HINTS ${hints} DOC "NVIDIA's compiler")
  mark_as_advanced(KVC_NVCC)
  if(NOT KVC_NVCC)
    set(why_not "there is no nvcc (make cuda-toolkit fetches one)")
  else()
    execute_process(COMMAND "${KVC_NVCC}" --version OUTPUT_VARIABLE version ERROR_VARIABLE version)
    string(REGEX MATCH "release ([0-9.]+)" version "${version}")
    set(version "${CMAKE_MATCH_1}")
    get_filename_component(KVC_CUDA_HOME "${KVC_NVCC}" REALPATH)
    get_filename_component(KVC_CUDA_HOME "${KVC_CUDA_HOME}/../.." ABSOLUTE)
    find_library(KVC_CUDART libcudart_static.a HINTS "${KVC_CUDA_HOME}" PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
    mark_as_advanced(KVC_CUDART)
    if(NOT version OR version VERSION_LESS least_nvcc)
      set(why_not "${KVC_NVCC} is of CUDA ${version}, and kvc needs ${least_nvcc}")
    elseif(NOT KVC_CUDART)
      set(why_not "there is no libcudart_static.a in ${KVC_CUDA_HOME}")
    endif()
  endif()
endmacro()

if(KVC_CUDA STREQUAL "AUTO")
  # Inside another project it would be built unasked; kernels on a GPU have no sanitizers and no coverage.
  set(KVC_BUILD_CUDA ON)
  if(NOT PROJECT_IS_TOP_LEVEL OR CMAKE_CROSSCOMPILING OR KVC_SANITIZE OR KVC_COVERAGE)
    set(KVC_BUILD_CUDA OFF)
  else()
    kvc_find_nvcc()
    if(why_not)
      message(STATUS "libkvc_cuda is not built: ${why_not}")
      set(KVC_BUILD_CUDA OFF)
    endif()
  endif()
elseif(KVC_CUDA)
  set(KVC_BUILD_CUDA ON)
  kvc_find_nvcc()
  if(why_not)
    message(FATAL_ERROR " KVC_CUDA is ${KVC_CUDA}, but ${why_not}.")
  endif()
else()
  set(KVC_BUILD_CUDA OFF)
endif()
if(NOT KVC_BUILD_CUDA)
  return()
endif()

# Machine code for the generations that kernels are written for, and PTX, from which the driver compiles for later ones.
set(targets 80 90a)
if(KVC_CUDA_ALL)
  list(APPEND targets 86 89 100f 120f)
endif()
set(nvcc_options -std=c++20 -O3 --compress-mode=size -ccbin "${CMAKE_CXX_COMPILER}" "-I${PROJECT_SOURCE_DIR}"
  -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra)
foreach(target IN LISTS targets)
  list(APPEND nvcc_options -gencode=arch=compute_${target},code=sm_${target})
endforeach()
list(APPEND nvcc_options -gencode=arch=compute_80,code=compute_80)
if(KVC_DEVELOPER)
  list(APPEND nvcc_options -Werror=all-warnings)
endif()

# Sets `objects` to what nvcc makes of these sources.
function(kvc_compile_cuda objects)
  set(made)
  foreach(source IN LISTS ARGN)
    get_filename_component(name "${source}" NAME_WE)
    set(object "${PROJECT_BINARY_DIR}/cuda/${name}.o")
    add_custom_command(OUTPUT "${object}"
      COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} "${KVC_NVCC}" ${nvcc_options} -MD -MT "${object}" -MF "${object}.d"
        -c "${source}" -o "${object}"
      DEPENDS "${source}" DEPFILE "${object}.d" COMMENT "Building CUDA object cuda/${name}.o" VERBATIM)
    list(APPEND made "${object}")
  endforeach()
  set_source_files_properties(${made} PROPERTIES EXTERNAL_OBJECT ON)
  set(${objects} ${made} PARENT_SCOPE)
endfunction()
file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/cuda")

# A program of tests or bench that calls CUDA's runtime itself, beside libkvc and its backend.
function(kvc_use_gpu name)
  target_sources(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests/cuda/gpu_cuda.cpp"
    "${PROJECT_SOURCE_DIR}/kernels/cuda/plugin/runtime_cuda.cpp")
  target_include_directories(${name} SYSTEM PRIVATE "${KVC_CUDA_HOME}/include")
  target_link_libraries(${name} PRIVATE kvc::kvc kvc_private "${KVC_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)
  add_dependencies(${name} kvc_cuda)
endfunction()

file(GLOB kernels CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu")
kvc_compile_cuda(objects ${kernels})
file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/cuda/*.cpp" "${PROJECT_SOURCE_DIR}/kernels/cuda/plugin/*.cpp")
add_library(kvc_cuda SHARED ${sources} ${KVC_CUDA_CORE_SOURCES} ${objects})
set_target_properties(kvc_cuda PROPERTIES KVC_KERNEL_OBJECTS "${objects}") # for tests, after kvc_cuda is built
target_include_directories(kvc_cuda SYSTEM PRIVATE "${KVC_CUDA_HOME}/include")
target_link_libraries(kvc_cuda PRIVATE kvc_private "${KVC_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)
kvc_make_plugin(kvc_cuda "${PROJECT_SOURCE_DIR}/kernels/cuda/plugin/plugin.map")
