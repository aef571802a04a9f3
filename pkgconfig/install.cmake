# What an installation is made of, in three components: runtime (the shared library alone), development, and cuda (the backend
# for NVIDIA's GPUs alone, where it is built).
set(KVC_CMAKE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/kvc")
set(KVC_PC_DIR "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

configure_file(pkgconfig/before_install.cmake.in before_install.cmake @ONLY)
file(READ "${PROJECT_BINARY_DIR}/before_install.cmake" check)
install(CODE "${check}" ALL_COMPONENTS) # as a SCRIPT, its message would end in a call stack

set(targets)
if(KVC_SHARED)
  list(APPEND targets kvc)
endif()
if(KVC_STATIC)
  list(APPEND targets kvc_static)
endif()
install(TARGETS ${targets} EXPORT kvcTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime NAMELINK_COMPONENT development
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT development)
if(KVC_BUILD_CUDA) # programs never link it
  install(TARGETS kvc_cuda LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT cuda NAMELINK_SKIP)
endif()
install(DIRECTORY capi/include/kvc DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT development)

# ---- find_package ----------------------------------------------------------------------------------------------------

install(EXPORT kvcTargets NAMESPACE kvc:: DESTINATION "${KVC_CMAKE_DIR}" COMPONENT development)
configure_package_config_file(pkgconfig/kvcConfig.cmake.in kvcConfig.cmake INSTALL_DESTINATION "${KVC_CMAKE_DIR}"
  PATH_VARS CMAKE_INSTALL_LIBDIR NO_SET_AND_CHECK_MACRO)
configure_file(pkgconfig/kvcConfigVersion.cmake.in kvcConfigVersion.cmake @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/kvcConfig.cmake" "${PROJECT_BINARY_DIR}/kvcConfigVersion.cmake"
  DESTINATION "${KVC_CMAKE_DIR}" COMPONENT development)

# ---- pkg-config ------------------------------------------------------------------------------------------------------

# The prefix relative to the .pc file, so that it can be moved; an absolute directory stays where it is.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(KVC_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(KVC_PC_PREFIX "\${pcfiledir}/${up}")
endif()
foreach(directory LIBDIR INCLUDEDIR)
  set(KVC_PC_${directory} "${CMAKE_INSTALL_${directory}}")
  if(NOT IS_ABSOLUTE "${KVC_PC_${directory}}")
    string(PREPEND KVC_PC_${directory} "\${prefix}/")
  endif()
  string(REPLACE " " "\\ " KVC_PC_${directory} "${KVC_PC_${directory}}")
endforeach()
string(REPLACE " " "\\ " KVC_PC_PREFIX "${KVC_PC_PREFIX}") # as pkg-config itself writes ${pcfiledir}
list(JOIN KVC_RUNTIME " " KVC_PC_RUNTIME)
# What a program needs beside -lkvc: with the shared library nothing, unless it is linked statically.
set(KVC_PC_LIBS "")
set(KVC_PC_LIBS_PRIVATE "${KVC_PC_RUNTIME}")
if(NOT KVC_SHARED)
  set(KVC_PC_LIBS " ${KVC_PC_RUNTIME}")
  set(KVC_PC_LIBS_PRIVATE "")
endif()
set(KVC_PC_CUDA "")
if(KVC_BUILD_CUDA)
  set(KVC_PC_CUDA "cuda_backend=\${libdir}/libkvc_cuda.so.${PROJECT_VERSION_MAJOR}\n")
endif()
set(files kvc.pc)
if(KVC_STATIC)
  list(APPEND files kvc-static.pc)
endif()
foreach(file IN LISTS files)
  configure_file(pkgconfig/${file}.in ${file} @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/${file}" DESTINATION "${KVC_PC_DIR}" COMPONENT development)
endforeach()

# ---- uninstall -------------------------------------------------------------------------------------------------------

file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/installed") # now, so that it is not root's after "sudo cmake --install"
configure_file(pkgconfig/after_install.cmake.in after_install.cmake @ONLY)
file(READ "${PROJECT_BINARY_DIR}/after_install.cmake" record)
install(CODE "${record}" ALL_COMPONENTS)

if(PROJECT_IS_TOP_LEVEL)
  add_custom_target(uninstall COMMAND "${PROJECT_SOURCE_DIR}/pkgconfig/uninstall" "${PROJECT_BINARY_DIR}" VERBATIM)
endif()
