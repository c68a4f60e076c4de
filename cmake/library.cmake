# The library: one archive with the runtime and the kernels (kernels.cmake adds them). Its users need
# nothing of Halide.
file(GLOB runtime_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/runtime/src/*.cpp"
                                            "${PROJECT_SOURCE_DIR}/runtime/src/cuda/*.cpp")
add_library(pagegrad STATIC ${runtime_sources})
add_library(pagegrad::pagegrad ALIAS pagegrad)
target_sources(pagegrad PUBLIC
               FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}/runtime/include"
               FILES "${PROJECT_SOURCE_DIR}/runtime/include/pagegrad/pagegrad.h"
                     "${PROJECT_SOURCE_DIR}/runtime/include/pagegrad/pagegrad.hpp")
target_compile_features(pagegrad PUBLIC cxx_std_17)
set_target_properties(pagegrad PROPERTIES POSITION_INDEPENDENT_CODE ON
                                          CXX_VISIBILITY_PRESET hidden
                                          VISIBILITY_INLINES_HIDDEN ON)
find_package(Threads REQUIRED)
target_link_libraries(pagegrad
                      PRIVATE Threads::Threads ${CMAKE_DL_LIBS}
                              $<BUILD_INTERFACE:pagegrad_options> $<BUILD_INTERFACE:Halide::Runtime>)
target_include_directories(pagegrad PRIVATE "${PROJECT_BINARY_DIR}")
