# Whether GPU kernels are built, and with which assembler: ptxas of a CUDA toolkit, or of the Python
# package nvidia-cuda-nvcc that scripts/bootstrap installs where there is no toolkit. Nothing else of
# CUDA is needed: the kernels come from Halide, and the runtime opens the driver's library itself.
set(PAGEGRAD_CUDA AUTO CACHE STRING "Build the GPU kernels: ON, OFF, or AUTO where ptxas is found")
set_property(CACHE PAGEGRAD_CUDA PROPERTY STRINGS AUTO ON OFF)

set(pagegrad_cuda_enabled FALSE)
if(PAGEGRAD_CUDA)
    execute_process(
        COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
        OUTPUT_VARIABLE python_packages)
    find_program(PAGEGRAD_PTXAS ptxas
                 HINTS ENV CUDA_HOME ENV CUDA_PATH
                 PATHS /usr/local/cuda "${python_packages}/nvidia/cu13"
                 PATH_SUFFIXES bin)
    if(PAGEGRAD_PTXAS)
        set(pagegrad_cuda_enabled TRUE)
        message(STATUS "GPU kernels: with ${PAGEGRAD_PTXAS}")
    elseif(PAGEGRAD_CUDA STREQUAL "AUTO")
        message(STATUS "GPU kernels: none, since ptxas was not found. Run scripts/bootstrap or set "
                       "PAGEGRAD_PTXAS.")
    else()
        message(FATAL_ERROR "PAGEGRAD_CUDA is ${PAGEGRAD_CUDA}, but ptxas was not found. Run "
                            "scripts/bootstrap, or set CUDA_HOME or PAGEGRAD_PTXAS.")
    endif()
endif()
