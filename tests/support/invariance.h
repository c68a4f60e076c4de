/// What must not change a result, not even in the last bit.
#pragma once

#include "problem.h"

#include <cstddef>
#include <vector>

namespace pagegrad::test {

using Pass = pagegrad_status (PagedCall::*)();

/// 64-byte aligned memory of NaN between guard bands of the same bits.
class Workspace {
public:
    explicit Workspace(std::size_t bytes);
    void *data() {
        return memory_.data() + begin_;
    }
    bool guards_intact() const;

private:
    std::size_t bytes_, begin_;
    std::vector<unsigned char> memory_;
};

void expect_same_bits(const Results &got, const Results &expected);

/// 1, 2, 3 and 7 threads.
void expect_same_for_threads(const Problem &problem, const Options &options, Pass pass);
/// Any order of the blocks in the pool.
void expect_same_for_placement(const Problem &problem, const Options &options, Pass pass);
/// NaN, infinity or zero in unused slots; any id in unused columns of the table.
void expect_same_for_unused_memory(const Problem &problem, const Options &options, Pass pass);
/// The caller's parallel_for, which must be used.
void expect_same_with_callers_threads(const Problem &problem, const Options &options, Pass pass);
/// A workspace of exactly `bytes`, full of NaN; one byte less is refused.
void expect_workspace_respected(const Problem &problem, const Options &options, Pass pass,
                                std::size_t bytes);

/// Large enough for several tasks; with shared blocks, GQA and rows that see no key.
inline std::vector<std::pair<std::string, Geometry>> invariance_geometries() {
    return {
        {"bits_dim64", Geometry({65, 33, 17, 1}, {97, 65, 70, 64})
                           .dim(64)
                           .heads(6, 2)
                           .bottom_right()
                           .prefix(3)
                           .half()},
        {"bits_dim128", Geometry({31, 64, 5}, {127, 33, 50})
                            .dim(128)
                            .heads(3, 3)
                            .block(17)
                            .table({{0, 1, 2, 3, 4, 5, 6, 7}, {0, 8}, {3, 0, 3}})
                            .gaps()
                            .half()},
        {"bits_dim40",
         Geometry({127, 40}, {65, 40}).dim(40).heads(4, 2).block(3).top_left().batched().dlse()},
    };
}

/// The same with options.
inline std::vector<std::pair<std::string, Geometry>> option_invariance_geometries() {
    return {
        {"bits_options", Geometry({65, 33, 17, 1}, {97, 65, 70, 64})
                             .dim(64)
                             .values(72)
                             .heads(6, 2)
                             .cap(4)
                             .slopes()
                             .sinks()
                             .bottom_right()
                             .prefix(3)
                             .half()},
        {"bits_sinks", Geometry({127, 40}, {65, 40})
                           .dim(64)
                           .heads(4, 2)
                           .block(3)
                           .sinks()
                           .top_left()
                           .batched()
                           .dlse()},
    };
}

}  // namespace pagegrad::test
