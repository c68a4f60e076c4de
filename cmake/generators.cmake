# The programs that write the kernels: generators/<op>_generator.cpp with the schedules.
# They run once per kernel, so building them fast matters more than running them fast.
#
# They run on the build machine: a build for another one takes the programs of a build for this one,
# which exported them to its folder `cmake` (pagegrad-halide_generators_ROOT).
if(PAGEGRAD_KERNELS_FROM)
    return()
endif()
if(CMAKE_CROSSCOMPILING)
    find_package(pagegrad-halide_generators QUIET)
    if(NOT pagegrad-halide_generators_FOUND)
        message(FATAL_ERROR "A build for another processor needs the generators of a build for this one. "
                            "Build its target pagegrad-halide_generators, and set "
                            "pagegrad-halide_generators_ROOT to its folder \"cmake\".")
    endif()
    function(pagegrad_add_generator op)
    endfunction()
    return()
endif()

# Halide appends to the export at every configuration, and what is no more would stay.
file(REMOVE "${PROJECT_BINARY_DIR}/cmake/pagegrad-halide_generatorsConfig.cmake")

add_library(pagegrad_generator_options INTERFACE)
target_compile_features(pagegrad_generator_options INTERFACE cxx_std_17)
target_compile_options(pagegrad_generator_options INTERFACE -O1 -g0 -Wall -Wextra -Werror)
target_include_directories(pagegrad_generator_options INTERFACE
                           "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/generators")

file(GLOB schedule_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/schedules/*.cpp")
add_library(pagegrad_schedules STATIC ${schedule_sources})
target_link_libraries(pagegrad_schedules PUBLIC Halide::Halide PRIVATE pagegrad_generator_options)
target_precompile_headers(pagegrad_schedules PRIVATE <Halide.h>)

# pagegrad_add_generator(<source>): builds <source>.generator, unless that exists already.
function(pagegrad_add_generator source)
    if(TARGET ${source}.generator)
        return()
    endif()
    add_halide_generator(${source}.generator
                         SOURCES "${PROJECT_SOURCE_DIR}/generators/${source}_generator.cpp"
                         LINK_LIBRARIES pagegrad_schedules pagegrad_generator_options)
    set_target_properties(${source}.generator PROPERTIES NO_SYSTEM_FROM_IMPORTED OFF)
    target_precompile_headers(${source}.generator REUSE_FROM pagegrad_schedules)
endfunction()
