# The list of kernels: the only place that says which kernels a build holds. docs/kernels.md explains
# their names. From the list come the objects in the library and the table that dispatch reads.

# Halide's targets by the name they have in kernels. Written out, never "host": a build must not
# depend on the machine it was made on.
set(pagegrad_target_avx512 x86-64-linux-avx512_skylake-avx512-avx2-avx-f16c-fma-sse41)
set(pagegrad_target_avx2 x86-64-linux-avx2-avx-f16c-fma-sse41)
set(pagegrad_target_x86 x86-64-linux)
set(pagegrad_target_neon arm-64-linux)

# The targets of each processor, best first; the last one runs on all of its kind.
set(pagegrad_targets_x86_64 avx512 avx2 x86)
set(pagegrad_targets_aarch64 neon)
set(pagegrad_targets ${pagegrad_targets_${CMAKE_SYSTEM_PROCESSOR}})
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT pagegrad_targets)
    message(FATAL_ERROR "pagegrad has kernels for Linux on x86_64 and aarch64, not for "
                        "${CMAKE_SYSTEM_NAME} on ${CMAKE_SYSTEM_PROCESSOR}.")
endif()
list(GET pagegrad_targets -1 pagegrad_baseline)

# Kernels need nothing of Halide's runtime but memory, which comes from the workspace of the call
# (runtime/src/workspace.cpp). Their calls get names of our own, so that a program with another Halide
# pipeline, and its runtime, is left alone.
add_halide_runtime(pagegrad_halide_runtime TARGETS ${pagegrad_target_${pagegrad_baseline}})
set_target_properties(pagegrad_halide_runtime PROPERTIES EXCLUDE_FROM_ALL ON)
file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/kernels")
set(pagegrad_renamed_symbols)
foreach(symbol IN ITEMS halide_malloc halide_free)
    list(APPEND pagegrad_renamed_symbols --redefine-sym ${symbol}=pagegrad_${symbol})
endforeach()

# pagegrad_add_kernel(<op> DTYPE f32 TARGET <one of pagegrad_targets> [HEAD_DIM <n>|any])
# Adds a kernel of generators/<op>_generator.cpp. Dispatch tries kernels in the order of the calls.
function(pagegrad_add_kernel op)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "DTYPE;TARGET;HEAD_DIM" "")
    set(name ${op}_${arg_DTYPE})
    set(params)
    set(head_dim 0)
    if(arg_HEAD_DIM STREQUAL "any")
        string(APPEND name _any)
        set(params PARAMS head_dim=0)
    elseif(arg_HEAD_DIM)
        string(APPEND name _d${arg_HEAD_DIM})
        set(head_dim ${arg_HEAD_DIM})
        set(params PARAMS head_dim=${head_dim})
    endif()
    string(APPEND name _${arg_TARGET})
    set(symbol pagegrad_kernel_${name})

    pagegrad_add_generator(${op})
    add_halide_library(${symbol} FROM ${op}.generator GENERATOR ${op} ${params}
                       USE_RUNTIME pagegrad_halide_runtime
                       TARGETS ${pagegrad_target_${arg_TARGET}}
                       FEATURES user_context no_asserts no_bounds_query large_buffers)
    set_target_properties(${symbol} PROPERTIES EXCLUDE_FROM_ALL ON)
    set(generated "${CMAKE_CURRENT_BINARY_DIR}/${symbol}.o")
    set(object "${CMAKE_CURRENT_BINARY_DIR}/kernels/${name}.o")
    add_custom_command(OUTPUT "${object}"
                       COMMAND "${CMAKE_OBJCOPY}" ${pagegrad_renamed_symbols}
                               "${generated}" "${object}"
                       DEPENDS "${generated}" VERBATIM)
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(pagegrad PRIVATE "${object}")
    add_dependencies(pagegrad ${symbol}.update)

    set_property(TARGET pagegrad APPEND_STRING PROPERTY pagegrad_headers "#include \"${symbol}.h\"\n")
    set_property(TARGET pagegrad APPEND_STRING PROPERTY pagegrad_table
        "PAGEGRAD_KERNEL(${op}, ${arg_DTYPE}, ${head_dim}, ${arg_TARGET}, \"${name}\", ${symbol})\n")
endfunction()

# Best target first, and in a target kernels for one head_dim before those for any.
foreach(target IN LISTS pagegrad_targets)
    set(head_dims 64 128 any)
    if(target STREQUAL "x86")
        set(head_dims any)
    endif()
    foreach(op IN ITEMS backward forward)
        foreach(head_dim IN LISTS head_dims)
            pagegrad_add_kernel(${op} DTYPE f32 HEAD_DIM ${head_dim} TARGET ${target})
        endforeach()
    endforeach()
    foreach(op IN ITEMS forward_finish row_statistics gather scatter_add backward_dense)
        pagegrad_add_kernel(${op} DTYPE f32 TARGET ${target})
    endforeach()
endforeach()

file(GENERATE OUTPUT kernel_headers.inc CONTENT "$<TARGET_PROPERTY:pagegrad,pagegrad_headers>")
file(GENERATE OUTPUT kernel_table.inc CONTENT "$<TARGET_PROPERTY:pagegrad,pagegrad_table>")
