# The list of kernels: the only place that says which kernels a build holds. docs/kernels.md explains
# their names. From the list come the objects in the library and the table that dispatch reads.

# Halide's targets by the name they have in kernels. Written out, never "host": a build must not
# depend on the machine it was made on.
set(pagegrad_target_avx512bf16 x86-64-linux-avx512_zen4-avx512_skylake-avx512-avx2-avx-f16c-fma-sse41)
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
if(NOT PAGEGRAD_KERNELS_FROM)
    add_halide_runtime(pagegrad_halide_runtime TARGETS ${pagegrad_target_${pagegrad_baseline}})
    set_target_properties(pagegrad_halide_runtime PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/kernels")
set(pagegrad_renamed_symbols)
foreach(symbol IN ITEMS halide_malloc halide_free)
    list(APPEND pagegrad_renamed_symbols --redefine-sym ${symbol}=pagegrad_${symbol})
endforeach()

# Compiles a kernel and sets <object>, or takes it from another build.
function(pagegrad_compile_kernel object name symbol op source target params)
    set(file "kernels/${name}.o")
    if(PAGEGRAD_KERNELS_FROM)
        set(${object} "${PAGEGRAD_KERNELS_FROM}/${file}" PARENT_SCOPE)
        return()
    endif()
    pagegrad_add_generator(${source})
    add_halide_library(${symbol} FROM ${source}.generator GENERATOR ${op} ${params}
                       USE_RUNTIME pagegrad_halide_runtime
                       TARGETS ${pagegrad_target_${target}}
                       FEATURES user_context no_asserts no_bounds_query large_buffers)
    set_target_properties(${symbol} PROPERTIES EXCLUDE_FROM_ALL ON)
    set(generated "${CMAKE_CURRENT_BINARY_DIR}/${symbol}.o")
    set(compiled "${CMAKE_CURRENT_BINARY_DIR}/${file}")
    add_custom_command(OUTPUT "${compiled}"
                       COMMAND "${CMAKE_OBJCOPY}" ${pagegrad_renamed_symbols}
                               "${generated}" "${compiled}"
                       DEPENDS "${generated}" VERBATIM)
    set_source_files_properties("${compiled}" PROPERTIES GENERATED ON)
    add_dependencies(pagegrad ${symbol}.update)
    set(${object} "${compiled}" PARENT_SCOPE)
endfunction()

# pagegrad_add_kernel(<op> DTYPE f32|bf16|f16 TARGET <target> [HEAD_DIM <n>|any] [SOURCE <name>]
#                     [PARAMS <generator parameter>=<value>...])
# Adds a kernel of generators/<name>_generator.cpp, <op> by default (<op> without "_general" for the
# general kernels, those with softcap and ALiBi). Dispatch tries kernels in the
# order of the calls.
function(pagegrad_add_kernel op)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "DTYPE;TARGET;HEAD_DIM;SOURCE" "PARAMS")
    string(REGEX REPLACE "_general$" "" generator ${op})
    if(NOT arg_SOURCE)
        set(arg_SOURCE ${generator})
    endif()
    set(name ${op}_${arg_DTYPE})
    set(params ${arg_PARAMS})
    if(NOT generator STREQUAL op)
        list(APPEND params general=true)
    endif()
    set(head_dim 0)
    if(arg_HEAD_DIM STREQUAL "any")
        string(APPEND name _any)
        list(APPEND params head_dim=0)
    elseif(arg_HEAD_DIM)
        string(APPEND name _d${arg_HEAD_DIM})
        set(head_dim ${arg_HEAD_DIM})
        list(APPEND params head_dim=${head_dim})
    endif()
    string(APPEND name _${arg_TARGET})
    set(symbol pagegrad_kernel_${name})
    if(params)
        list(PREPEND params PARAMS)
    endif()

    pagegrad_compile_kernel(object ${name} ${symbol} ${generator} ${arg_SOURCE} ${arg_TARGET}
                            "${params}")
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON)
    target_sources(pagegrad PRIVATE "${object}")

    set_property(TARGET pagegrad APPEND_STRING PROPERTY pagegrad_headers "#include \"${symbol}.h\"\n")
    set_property(TARGET pagegrad APPEND_STRING PROPERTY pagegrad_table
        "PAGEGRAD_KERNEL(${op}, ${arg_DTYPE}, ${head_dim}, ${arg_TARGET}, \"${name}\", ${symbol})\n")
endfunction()

set(pagegrad_type_f32 float32)
set(pagegrad_type_bf16 bfloat16)
set(pagegrad_type_f16 float16)

# Forward and backward with products of packed tiles in <dtype>, for the given head_dims.
function(pagegrad_add_products target dtype)
    foreach(op IN ITEMS backward forward)
        foreach(head_dim IN LISTS ARGN)
            pagegrad_add_kernel(${op} DTYPE ${dtype} HEAD_DIM ${head_dim} TARGET ${target}
                                PARAMS product=${pagegrad_type_${dtype}})
        endforeach()
    endforeach()
endfunction()

# What makes tiles for products in <product> from tensors of a dtype.
function(pagegrad_add_packing target dtype product)
    foreach(source IN ITEMS pack transpose)
        foreach(of IN ITEMS keys queries)
            pagegrad_add_kernel(${source}_${of} SOURCE ${source} DTYPE ${dtype} TARGET ${target}
                                PARAMS dtype=${pagegrad_type_${dtype}}
                                       product=${pagegrad_type_${product}})
        endforeach()
    endforeach()
endfunction()

# Best target first, and in a target kernels for one head_dim before those for any. Products in
# bfloat16 are avx512bf16's alone; for everything else the kernels of avx512 serve beside it.
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
    pagegrad_add_products(avx512bf16 bf16 64 128 any)
    pagegrad_add_packing(avx512bf16 bf16 bf16)
endif()
foreach(target IN LISTS pagegrad_targets)
    if(target STREQUAL "x86")
        pagegrad_add_products(${target} f32 any)
    else()
        pagegrad_add_products(${target} f32 64 128 any)
    endif()
    # Tensors of 16 bits are widened while they are packed.
    foreach(dtype IN ITEMS f32 bf16 f16)
        set(type ${pagegrad_type_${dtype}})
        pagegrad_add_packing(${target} ${dtype} f32)
        foreach(op IN ITEMS gather forward_finish)
            pagegrad_add_kernel(${op} DTYPE ${dtype} TARGET ${target} PARAMS dtype=${type})
        endforeach()
        if(NOT dtype STREQUAL "f32")
            pagegrad_add_kernel(widen SOURCE convert DTYPE ${dtype} TARGET ${target}
                                PARAMS from=${type})
            pagegrad_add_kernel(narrow SOURCE convert DTYPE ${dtype} TARGET ${target}
                                PARAMS to=${type})
        endif()
    endforeach()
    foreach(op IN ITEMS forward_general backward_general)
        pagegrad_add_kernel(${op} DTYPE f32 HEAD_DIM any TARGET ${target})
    endforeach()
    foreach(op IN ITEMS row_statistics scatter_add backward_dense backward_dense_general)
        pagegrad_add_kernel(${op} DTYPE f32 TARGET ${target})
    endforeach()
endforeach()

target_include_directories(pagegrad PRIVATE ${PAGEGRAD_KERNELS_FROM})
file(GENERATE OUTPUT kernel_headers.inc CONTENT "$<TARGET_PROPERTY:pagegrad,pagegrad_headers>")
file(GENERATE OUTPUT kernel_table.inc CONTENT "$<TARGET_PROPERTY:pagegrad,pagegrad_table>")
