# Compile options of our own code; never seen by users of the library.
add_library(pagegrad_options INTERFACE)
target_compile_features(pagegrad_options INTERFACE cxx_std_17)
target_compile_options(pagegrad_options INTERFACE -Wall -Wextra -Werror)
# GCC 12 believes that std::sort leaves arrays shorter than its insertion threshold.
target_compile_options(pagegrad_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-array-bounds>)
# Clang warns of what std::stable_sort of GCC 12's library calls.
target_compile_options(pagegrad_options INTERFACE
                       $<$<CXX_COMPILER_ID:Clang>:-Wno-deprecated-declarations>)
if(PAGEGRAD_SANITIZE)
    # With sanitizers GCC 12 takes members of the standard library for uninitialised.
    target_compile_options(pagegrad_options INTERFACE
                           $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_compile_options(pagegrad_options INTERFACE
                           -fsanitize=${PAGEGRAD_SANITIZE} -fno-sanitize-recover=all
                           -fno-omit-frame-pointer)
    target_link_options(pagegrad_options INTERFACE -fsanitize=${PAGEGRAD_SANITIZE})
endif()
