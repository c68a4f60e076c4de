# Finds Halide 21: the one that Halide_DIR names, or else the Python package of Python_EXECUTABLE
# (the presets set it to the .venv that scripts/bootstrap makes).
find_package(Python 3.9 REQUIRED COMPONENTS Interpreter)

if(NOT Halide_DIR)
    execute_process(
        COMMAND "${Python_EXECUTABLE}" -c "import halide; print(halide.install_dir(), end='')"
        OUTPUT_VARIABLE halide_root
        RESULT_VARIABLE halide_missing
        ERROR_QUIET)
    if(halide_missing)
        message(FATAL_ERROR "${Python_EXECUTABLE} has no package 'halide'. Run scripts/bootstrap and "
                            "configure with `.venv/bin/cmake --preset release`, or set Halide_DIR.")
    endif()
    set(Halide_DIR "${halide_root}/lib64/cmake/Halide" CACHE PATH "Halide's CMake package")
endif()

# Only C++ is used; Halide's Python bindings would require the headers of Python.
set(CMAKE_DISABLE_FIND_PACKAGE_Halide_Python TRUE)
find_package(Halide 21 REQUIRED COMPONENTS shared)
