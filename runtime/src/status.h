/// Failures inside the library, turned into a status and a message at the C boundary.
#pragma once

#include "pagegrad/pagegrad.h"

#include <sstream>
#include <string>
#include <utility>

namespace pagegrad {

struct Failure {
    pagegrad_status status;
    std::string message;
};

template<typename... Parts>
[[noreturn]] void fail(pagegrad_status status, const Parts &...parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw Failure{status, message.str()};
}

/// Refuses an argument unless `valid`. The parts name the argument, its value and what was
/// expected.
template<typename... Parts>
void require(bool valid, const Parts &...parts) {
    if (!valid) {
        fail(PAGEGRAD_INVALID_ARGUMENT, parts...);
    }
}

}  // namespace pagegrad
