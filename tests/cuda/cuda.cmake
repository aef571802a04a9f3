# What the CUDA backend has beside the tests of all devices. Paths are those of tests/.

# Random passes against the CPU: over the simulation, and on a GPU (make test-cuda).
if(TARGET kvc_simt_backend)
  # A program for "cuda:0" over the simulation.
  function(kvc_add_simulated name)
    add_executable(${name} ${ARGN} cuda/gpu.cpp cuda/gpu_simulated.cpp cuda/simulated_device.cpp $<TARGET_OBJECTS:kvc_simt_backend>)
    target_link_libraries(${name} PRIVATE kvc_static kvc_simt_machine kvc_private kvc_simt_kernels)
  endfunction()
  kvc_add_simulated(simulated_passes cuda/passes.cpp)
  add_test(NAME cuda_passes_simulated COMMAND simulated_passes)
  kvc_label_test(cuda_passes_simulated short 600)

  # Every figure of make bench-cuda, in sizes that say nothing of speed.
  set_source_files_properties(bench/cuda/roofs.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  file(GLOB bench_sources CONFIGURE_DEPENDS bench/cuda/*.cpp)
  kvc_add_simulated(simulated_bench ${bench_sources} bench/cuda/roofs.cu)
  if(NOT KVC_SANITIZE) # it would take a minute
    add_test(NAME cuda_bench_simulated COMMAND simulated_bench --tiny)
    kvc_label_test(cuda_bench_simulated short 600)
  endif()

  # How tests of kernels run on a GPU (below), over the simulation.
  if(NOT KVC_SANITIZE) # which has a heap of its own
    kvc_add_test_elsewhere(simulated_cuda_attention unit_cuda_attention_test $<TARGET_OBJECTS:kvc_simt_backend> cuda/reachable_simulated.cpp)
    add_test(NAME cuda_attention_simulated COMMAND simulated_cuda_attention --gtest_filter=*GroupsAndManyTokens)
    kvc_label_test(cuda_attention_simulated short 600)
  endif()

  add_test(NAME cuda_peers COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/bench/cuda/peers.py" --self-test)
  kvc_label_test(cuda_peers short 60)

  # What the simulation has of each instruction. Its own TU knows simulated instructions alone, whatever the rest is compiled for.
  set_source_files_properties(cuda/instruction_kernel.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  add_library(kvc_simulated_instructions OBJECT cuda/instructions_simulated.cpp)
  target_link_libraries(kvc_simulated_instructions PRIVATE kvc_private kvc_simt_kernels)
  kvc_add_simulated(simulated_instructions cuda/instructions.cpp cuda/instruction_kernel.cu $<TARGET_OBJECTS:kvc_simulated_instructions>)
  add_test(NAME cuda_instructions_simulated COMMAND simulated_instructions)
  kvc_label_test(cuda_instructions_simulated short 600)
endif()
if(KVC_BUILD_CUDA)
  set_target_properties(kvc_bench_cuda PROPERTIES EXCLUDE_FROM_ALL OFF)
  add_executable(cuda_passes cuda/passes.cpp cuda/gpu.cpp)
  kvc_use_gpu(cuda_passes)
  kvc_compile_cuda(instruction_objects "${CMAKE_CURRENT_SOURCE_DIR}/cuda/instruction_kernel.cu")
  add_executable(cuda_instructions cuda/instructions.cpp cuda/gpu.cpp ${instruction_objects} $<TARGET_OBJECTS:kvc_simulated_instructions>)
  kvc_use_gpu(cuda_instructions)
  target_link_libraries(cuda_instructions PRIVATE kvc_simt_machine)
  add_test(NAME gpu_instructions COMMAND cuda_instructions CONFIGURATIONS Gpu)
  # Tests of kernels, whose launches go to the GPU. What the shim counts, a GPU does not.
  foreach(name cuda_attention cuda_codes cuda_narrow cuda_narrow_codes cuda_wide cuda_wide_sm90)
    kvc_add_test_elsewhere(gpu_${name}_test unit_${name}_test $<TARGET_OBJECTS:kvc_gpu_backend> ${kernel_objects} cuda/reachable_cuda.cpp)
    target_include_directories(gpu_${name}_test SYSTEM PRIVATE "${KVC_CUDA_HOME}/include")
    target_link_libraries(gpu_${name}_test PRIVATE "${KVC_CUDART}" ${CMAKE_DL_LIBS} rt)
    add_dependencies(gpu_${name}_test kvc_cuda)
    add_test(NAME gpu_${name} COMMAND gpu_${name}_test --gtest_filter=-*LoadsWhatIsSeenOnce* CONFIGURATIONS Gpu)
    kvc_label_test(gpu_${name} gpu 300)
    set_tests_properties(gpu_${name} PROPERTIES SKIP_RETURN_CODE 77) # kernels of one generation
  endforeach()
  add_test(NAME gpu_passes COMMAND cuda_passes --passes 1000 CONFIGURATIONS Gpu)
  add_test(NAME gpu_plugin COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/plugin/check" "${PROJECT_BINARY_DIR}" "${CMAKE_C_COMPILER}"
    CONFIGURATIONS Gpu)
  add_test(NAME gpu_sanitize COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/cuda/sanitize" $<TARGET_FILE_DIR:cuda_passes> CONFIGURATIONS Gpu)
  foreach(name gpu_instructions gpu_passes gpu_plugin gpu_sanitize)
    kvc_label_test(${name} gpu 600)
  endforeach()
  set_tests_properties(gpu_sanitize PROPERTIES SKIP_RETURN_CODE 77)
endif()

# The tests of CUDA kernels over kernels with bugs in them (cuda/planted_bugs.txt), in make test-long: compiling them takes minutes.
# make test looks whether each bug's line is still in the source.
add_custom_target(cuda_planted_programs)
if(KVC_PLANT_BUGS AND TARGET kvc_simt_backend)
  set(planted "${PROJECT_BINARY_DIR}/planted_cuda")
  set(planter Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/cuda/planted")
  file(GLOB kernel_files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/cuda/*.*")
  list(TRANSFORM kernel_files REPLACE "^.*/" "${planted}/kernels/cuda/" OUTPUT_VARIABLE planted_files)
  add_custom_command(OUTPUT ${planted_files} COMMAND ${planter} sources "${planted}/kernels/cuda"
    DEPENDS ${kernel_files} cuda/planted cuda/planted_bugs.txt VERBATIM)
  set(kernels ${planted_files})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  list(FILTER planted_files EXCLUDE REGEX "/(narrow|wide)_[a-z0-9_]+\\.cu$") # compiled for minutes; tests of kernels have instances of their own
  add_library(kvc_planted_backend OBJECT ${planted_files} simt/runtime_simt.cpp)
  set(programs)
  foreach(name cuda_attention cuda_narrow cuda_narrow_codes cuda_wide cuda_wide_sm90 cuda_device cuda_codecs cuda_states
      cuda_state_kernels cuda_lightning cuda_cache cuda_graphs cuda_state_graphs cuda_lightning_graphs cuda_row_graphs
      cuda_schedule cuda_prefixes cuda_prefix_graphs cuda_checkpoints cuda_prompts)
    kvc_add_test_program(planted_${name}_test unit/${name}_test.cpp kvc_static kvc_test_main kvc_simt_kernels
      $<TARGET_OBJECTS:kvc_planted_backend> "$<FILTER:$<TARGET_OBJECTS:kvc_simt_backend>,INCLUDE,/(narrow|wide)_[a-z0-9_]+\\.cu>")
    target_include_directories(planted_${name}_test PRIVATE "${KVC_XXHASH_INCLUDE}")
    list(APPEND programs planted_${name}_test)
  endforeach()
  target_link_libraries(kvc_planted_backend PRIVATE kvc_private kvc_simt_kernels)
  add_dependencies(cuda_planted_programs ${programs})
  set_target_properties(kvc_planted_backend ${programs} PROPERTIES EXCLUDE_FROM_ALL ON)
  foreach(target kvc_planted_backend ${programs})
    target_include_directories(${target} BEFORE PRIVATE "${planted}")
    target_compile_options(${target} PRIVATE -w -O1 -include "${CMAKE_CURRENT_SOURCE_DIR}/cuda/planted_bug.hpp")
  endforeach()
  add_test(NAME cuda_planted_list COMMAND ${planter} check)
  kvc_label_test(cuda_planted_list short 60)
  add_test(NAME long_cuda_planted COMMAND ${planter} run "$<TARGET_FILE_DIR:planted_cuda_cache_test>" CONFIGURATIONS Long)
  kvc_label_test(long_cuda_planted long 7200)
endif()
