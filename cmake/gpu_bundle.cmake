# `gpu_bundle`: everything that must run on a GPU, in one folder to be copied to a machine with one.
# run.sh there runs all of it and prints a summary. Needs neither CUDA nor this repository there.
if(PAGEGRAD_BUILD_TESTS AND PAGEGRAD_BUILD_TOOLS)
    set(bundle_folder "${PROJECT_BINARY_DIR}/gpu_bundle")
    set(bundle_targets gpu_tests gpu_benchmark)
    list(TRANSFORM bundle_targets REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE bundle_files)
    add_custom_target(gpu_bundle
                      COMMAND "${CMAKE_COMMAND}" -E make_directory "${bundle_folder}"
                      COMMAND "${CMAKE_COMMAND}" -E copy_if_different ${bundle_files}
                              "${PROJECT_SOURCE_DIR}/scripts/run_on_gpu" "${bundle_folder}"
                      COMMAND "${CMAKE_STRIP}" "${bundle_folder}/gpu_tests"
                              "${bundle_folder}/gpu_benchmark"
                      COMMAND "${CMAKE_COMMAND}" -E echo "run ${bundle_folder}/run_on_gpu on a GPU"
                      DEPENDS ${bundle_targets} VERBATIM)
endif()
