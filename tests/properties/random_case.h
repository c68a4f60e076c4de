/// Random valid problems, each made from a seed alone, and smaller ones that fail alike.
#pragma once

#include "tests/support/problem.h"

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <random>
#include <string>
#include <vector>

namespace pagegrad::test {

/// Numbers that depend on the seed alone, not on the standard library's distributions.
class Random {
public:
    explicit Random(uint64_t seed) : engine_(seed) {
    }
    /// 0 .. count - 1
    int below(int count) {
        return static_cast<int>(engine_() % count);
    }
    /// True in `percent` of 100 cases.
    bool chance(int percent) {
        return below(100) < percent;
    }
    template<typename T>
    T one_of(const std::vector<T> &values) {
        return values[below(static_cast<int>(values.size()))];
    }

private:
    std::mt19937_64 engine_;
};

/// A problem, how it is called, and with which kernels; empty names leave the choice to dispatch.
struct RandomCase {
    Geometry geometry{{}};
    Options options;
    std::string forward_kernel, backward_kernel;
};

RandomCase random_case(uint64_t seed);

/// In the words of Geometry and Options, to be put into a test.
std::ostream &operator<<(std::ostream &stream, const RandomCase &test);

/// A case that `fails` and that no single step makes simpler without passing: fewer sequences,
/// shorter ones, default options. `test` fails.
RandomCase shrunk(RandomCase test, const std::function<bool(const RandomCase &)> &fails);

/// Ends the program if a case takes minutes, since its threads wait for each other, and names its
/// seed.
class Watchdog {
public:
    explicit Watchdog(uint64_t seed);
    ~Watchdog();
    Watchdog(const Watchdog &) = delete;
    Watchdog &operator=(const Watchdog &) = delete;
};

/// Seeds to run, from PAGEGRAD_FIRST_SEED on, PAGEGRAD_CASES of them; printed once.
struct Seeds {
    uint64_t begin, end;
};
Seeds seeds(uint64_t default_count);

}  // namespace pagegrad::test
