# What a cross build tests under its emulator (make test-aarch64): the programs above, and two scripts.

# Of these tests an emulator makes something else, or takes too long.
set_tests_properties(
  conformance_fork_test             # qemu ignores MADV_WIPEONFORK, and ends a forked child that starts a thread
  conformance_out_of_memory_test    # counts the threads of the process: qemu has one of its own
  conformance_prefault_test         # counts its pages: qemu ignores MADV_POPULATE_WRITE
  conformance_thread_messages_test  # starts 40000 threads, and threads in forked children: minutes
  conformance_attention_shapes_test # the shapes whose speed is measured: minutes
  PROPERTIES DISABLED ON)
set_tests_properties(conformance_attention_options_test PROPERTIES ENVIRONMENT "KVC_ONE_PAIR_IN=${thinned}")

add_test(NAME abi COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/abi/check" --cc "${CMAKE_C_COMPILER}"
  --cxx "${CMAKE_CXX_COMPILER}" --library $<TARGET_FILE:kvc> --emulator "${CMAKE_CROSSCOMPILING_EMULATOR}")
add_test(NAME instruction_sets COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/abi/check_instruction_sets"
  $<TARGET_OBJECTS:kvc_kernels> COMMAND_EXPAND_LISTS)
add_test(NAME smoke_conversions COMMAND unit_conversions_test --gtest_filter=*Half*:*Halves*:*AnyFloat*)
foreach(name abi instruction_sets smoke_conversions)
  kvc_label_test(${name} short 600)
endforeach()

# Those that make test runs, too; their programs are all that is built there.
set(programs unit_conversions_test conformance_instruction_set_test conformance_threads_test conformance_vectors_test
  target_operations)
add_custom_target(smoke_tests DEPENDS kvc ${programs})
set_property(TEST abi instruction_sets smoke_conversions conformance_instruction_set_test conformance_threads_test
  conformance_vectors_test replay_operations APPEND PROPERTY LABELS smoke)

foreach(name fuzz_operations unit_kernels_test unit_tile_kernels_test conformance_abort_test)
  set_tests_properties(${name} PROPERTIES COST 1000)
endforeach()
