# The list of GPU kernels, which stands beside that of cmake/kernels.cmake. What the build makes of
# one, and its interface: lowering/README.md.

# Architectures of ptxas by the name that targets have in kernels.
set(pagegrad_architecture_sm90 sm_90a)

# What turns Halide's lowering into tensor core kernels, and the program that writes them.
if(pagegrad_cuda_enabled AND NOT PAGEGRAD_KERNELS_FROM)
    file(GLOB lowering_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/lowering/*.cpp")
    list(REMOVE_ITEM lowering_sources "${PROJECT_SOURCE_DIR}/lowering/emit_kernel.cpp")
    add_library(pagegrad_lowering STATIC ${lowering_sources})
    target_link_libraries(pagegrad_lowering PUBLIC Halide::Halide pagegrad_generator_options)
    target_precompile_headers(pagegrad_lowering REUSE_FROM pagegrad_schedules)

    file(GLOB cuda_generators CONFIGURE_DEPENDS
         "${PROJECT_SOURCE_DIR}/generators/*_cuda_generator.cpp")
    add_executable(cuda.generator "${PROJECT_SOURCE_DIR}/lowering/emit_kernel.cpp"
                                  ${cuda_generators})
    target_link_libraries(cuda.generator PRIVATE pagegrad_lowering)
    target_precompile_headers(cuda.generator REUSE_FROM pagegrad_schedules)
endif()

# pagegrad_add_cuda_kernel(<op> DTYPE bf16|f16 TARGET sm90 [HEAD_DIM <n>|any|any256]
#                          [GENERATOR <generator>] [PARAMS <name>=<value>...])
# Adds a kernel of generators/<generator or op>_cuda_generator.cpp: for one head_dim, for any up to
# 128, or for any from there to 256.
function(pagegrad_add_cuda_kernel op)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "DTYPE;TARGET;HEAD_DIM;GENERATOR" "PARAMS")
    set(generator ${op})
    if(arg_GENERATOR)
        set(generator ${arg_GENERATOR})
    endif()
    set(element_bf16 bfloat16)
    set(element_f16 float16)
    set(name ${op}_${arg_DTYPE})
    set(params element=${element_${arg_DTYPE}} ${arg_PARAMS})
    set(head_dims 0 0)
    if(arg_HEAD_DIM MATCHES "^any([0-9]*)$")
        string(APPEND name _${arg_HEAD_DIM})
        set(largest 128)
        if(CMAKE_MATCH_1)
            set(largest ${CMAKE_MATCH_1})
        endif()
        set(head_dims 0 ${largest})
        list(APPEND params max_head_dim=${largest})
    elseif(arg_HEAD_DIM)
        string(APPEND name _d${arg_HEAD_DIM})
        set(head_dims ${arg_HEAD_DIM} ${arg_HEAD_DIM})
        list(APPEND params fixed_head_dim=${arg_HEAD_DIM})
    endif()
    list(JOIN head_dims ", " head_dims)
    string(APPEND name _${arg_TARGET})
    set(symbol pagegrad_device_kernel_${name})

    set(source "${CMAKE_CURRENT_BINARY_DIR}/kernels/${name}.cpp")
    if(PAGEGRAD_KERNELS_FROM)
        set(source "${PAGEGRAD_KERNELS_FROM}/kernels/${name}.cpp")
    else()
        add_custom_command(OUTPUT "${source}"
                           COMMAND cuda.generator "${PAGEGRAD_PTXAS}" ${generator}_cuda ${name}
                                   ${pagegrad_architecture_${arg_TARGET}} "${source}" ${params}
                           DEPENDS cuda.generator
                           COMMENT "GPU kernel ${name}" VERBATIM)
    endif()
    target_sources(pagegrad PRIVATE "${source}")
    set_property(TARGET pagegrad APPEND_STRING PROPERTY pagegrad_device_headers
                 "extern const pagegrad::DeviceKernel ${symbol};\n")
    set_property(TARGET pagegrad APPEND_STRING PROPERTY pagegrad_device_table
        "PAGEGRAD_DEVICE_KERNEL(${op}, ${arg_DTYPE}, ${head_dims}, ${arg_TARGET}, \"${name}\", ${symbol})\n")
endfunction()

if(pagegrad_cuda_enabled)
    foreach(dtype IN ITEMS bf16 f16)
        foreach(head_dim IN ITEMS 64 128 any)
            set(kind DTYPE ${dtype} HEAD_DIM ${head_dim} TARGET sm90)
            pagegrad_add_cuda_kernel(backward ${kind})
            pagegrad_add_cuda_kernel(backward_keys ${kind} GENERATOR backward PARAMS with_dq=false)
            pagegrad_add_cuda_kernel(backward_queries ${kind})
            pagegrad_add_cuda_kernel(forward ${kind})
        endforeach()
        # A thread block has no room for the sums of dk and dv of 256 columns both.
        set(kind DTYPE ${dtype} HEAD_DIM any256 TARGET sm90)
        pagegrad_add_cuda_kernel(backward_keys ${kind} GENERATOR backward
                                 PARAMS with_dq=false with_dv=false)
        pagegrad_add_cuda_kernel(backward_values ${kind} GENERATOR backward
                                 PARAMS with_dq=false with_dk=false)
        pagegrad_add_cuda_kernel(backward_queries ${kind})
        pagegrad_add_cuda_kernel(forward ${kind})
        foreach(op IN ITEMS row_statistics backward_finish)
            pagegrad_add_cuda_kernel(${op} DTYPE ${dtype} TARGET sm90)
        endforeach()
    endforeach()
endif()

target_include_directories(pagegrad PRIVATE "${PROJECT_SOURCE_DIR}")
file(GENERATE OUTPUT device_kernel_headers.inc
     CONTENT "#include \"lowering/device_kernel.h\"\n$<TARGET_PROPERTY:pagegrad,pagegrad_device_headers>")
file(GENERATE OUTPUT device_kernel_table.inc
     CONTENT "$<TARGET_PROPERTY:pagegrad,pagegrad_device_table>")
