# Builds for AArch64 on another machine, with Debian's cross compiler; ctest runs what it builds under qemu (make test-aarch64).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(KVC_AARCH64_ROOT /usr/aarch64-linux-gnu) # Debian's libc and C++ runtime for the target
find_program(KVC_QEMU NAMES qemu-aarch64 qemu-aarch64-static REQUIRED)
set(CMAKE_CROSSCOMPILING_EMULATOR "${KVC_QEMU};-L;${KVC_AARCH64_ROOT}")

# Of this machine come programs, and headers that are no machine's: those alone, because beside them lie its libc's.
get_property(inside_try_compile GLOBAL PROPERTY IN_TRY_COMPILE)
if(NOT inside_try_compile)
  set(headers "${CMAKE_BINARY_DIR}/headers/include")
  file(MAKE_DIRECTORY "${headers}")
  foreach(header xxhash.h nlohmann)
    if(EXISTS "/usr/include/${header}")
      file(CREATE_LINK "/usr/include/${header}" "${headers}/${header}" SYMBOLIC)
    endif()
  endforeach()
  set(CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES "${headers}")
endif()
set(CMAKE_FIND_ROOT_PATH "${KVC_AARCH64_ROOT}" "${CMAKE_BINARY_DIR}/headers")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
