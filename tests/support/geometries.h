/// The geometries that forward and backward are tested with.
#pragma once

#include "problem.h"

#include <string>
#include <utility>
#include <vector>

namespace pagegrad::test {

/// Not a cross product: every length, block size, head dimension, number of heads, mask, form and
/// layout occurs together with several values of the others. Kernels of 16-bit formats differ from
/// those of float32 in loads, stores and packing: they get some of every kind.
inline std::vector<std::pair<std::string, Geometry>> geometries() {
    return {
        // Head dimensions, with and without a kernel of their own.
        {"dim1",
         Geometry({0, 1, 15, 16, 17}, {17, 1, 16, 0, 33}).dim(1).heads(2, 1).block(3).half()},
        {"dim8", Geometry({31, 33, 64}, {31, 65, 64}).dim(8).heads(3, 1).block(1).bottom_right()},
        {"dim40", Geometry({65, 127}, {33, 127}).dim(40).heads(7, 7).block(17).top_left().half()},
        {"dim64", Geometry({257, 64}, {257, 127}).dim(64).heads(2, 1).block(16).bottom_right()},
        {"dim64_full", Geometry({17, 33}, {65, 31}).dim(64).heads(8, 2).block(3).dlse().half()},
        {"dim72",
         Geometry({15, 1, 65}, {64, 257, 17}).dim(72).heads(3, 3).block(256).padded().half()},
        {"dim96",
         Geometry({16, 127}, {33, 15}).dim(96).heads(2, 2).block(1).top_left().gaps().half()},
        {"dim128",
         Geometry({64, 33}, {65, 257}).dim(128).heads(2, 1).block(17).bottom_right().half()},
        {"dim128_full", Geometry({31, 1}, {127, 64}).dim(128).heads(7, 1).block(544).padded()},
        {"dim192",
         Geometry({17, 31}, {64, 16}).dim(192).heads(3, 1).block(16).dlse().batched().half()},
        {"dim256", Geometry({33, 15}, {127, 1}).dim(256).heads(2, 2).block(3).head_major()},
        {"dim512", Geometry({16, 5}, {31, 17}).dim(512).heads(2, 1).block(16).bottom_right()},

        // Lengths around tiles.
        {"long_rows", Geometry({257}, {17}).dim(64).heads(1, 1).block(16)},
        {"long_keys",
         Geometry({1, 15}, {257, 127}).dim(64).heads(8, 8).block(16).bottom_right().half()},
        {"every_length", Geometry({0, 1, 15, 16, 17, 31, 33, 64, 65, 127})
                             .dim(64)
                             .heads(2, 2)
                             .block(16)
                             .bottom_right()
                             .gaps()
                             .half()},
        {"every_length_top_left",
         Geometry({127, 65, 64, 33, 31, 17, 16, 15, 1, 0}, {0, 1, 15, 16, 17, 31, 33, 64, 65, 127})
             .dim(8)
             .heads(3, 1)
             .block(17)
             .top_left()
             .batched()},
        {"one_key", Geometry({76, 34, 146}, {1, 1, 1}).dim(32).bottom_right().half()},
        {"no_keys", Geometry({3, 5}, {0, 0}).dim(64).heads(2, 1).half()},
        {"no_queries", Geometry({0, 0}, {16, 33}).dim(64).heads(2, 1)},
        {"no_sequences", Geometry({}, {}).dim(64).heads(2, 1).half()},
        {"no_sequences_batched", Geometry({}, {}).dim(8).batched()},
        {"rows_without_keys",
         Geometry({65, 33}, {17, 1}).dim(64).heads(3, 1).bottom_right().half()},

        // Windows, alone and under a causal mask.
        {"window", Geometry({65, 64}, {65, 127}).dim(64).heads(2, 1).window(16, 3).half()},
        {"window_zero", Geometry({33, 17}, {33, 31}).dim(40).heads(2, 2).window(0, 0)},
        {"window_left",
         Geometry({127, 31}, {127, 65}).dim(64).block(3).window(15, -1).bottom_right()},
        {"window_right", Geometry({64, 15}, {33, 65}).dim(128).window(-1, 5)},
        {"window_right_long", Geometry({65}, {17}).dim(8).window(-1, 17)},
        {"window_top_left", Geometry({65, 33}, {31, 64}).dim(72).block(1).window(1, 1).top_left()},

        // Blocks with several users.
        {"prefix", Geometry({17, 33, 1, 16}, {65, 81, 64, 79})
                       .dim(64)
                       .heads(3, 1)
                       .bottom_right()
                       .prefix(4)
                       .half()},
        {"prefix_full", Geometry({31, 15}, {127, 65}).dim(128).heads(2, 1).block(17).prefix(3)},
        {"prefix_partly_used",
         Geometry({5, 9, 3}, {15, 33, 20}).dim(40).heads(2, 1).prefix(2).dlse().half()},
        {"same_sequence", Geometry({33, 33, 33}, {33, 33, 33})
                              .dim(64)
                              .heads(2, 2)
                              .bottom_right()
                              .table({{0, 1, 2}, {0, 1, 2}, {0, 1, 2}})},
        {"block_twice", Geometry({31, 15}, {64, 40})
                            .dim(64)
                            .heads(2, 1)
                            .bottom_right()
                            .table({{0, 1, 0, 2}, {1, 1, 1}})
                            .half()},
        {"moved_blocks", Geometry({17, 33, 16}, {9, 12, 10})
                             .dim(72)
                             .heads(3, 3)
                             .block(3)
                             .table({{0, 1, 2}, {3, 0, 1, 2}, {2, 1, 4, 0}})
                             .dlse()
                             .half()},
        {"one_large_block", Geometry({65, 31}, {257, 127})
                                .dim(64)
                                .block(544)
                                .table({{0}, {0}})
                                .bottom_right()
                                .batched()},

        // Memory and data.
        {"head_major",
         Geometry({33, 64}, {65, 64}).dim(64).heads(8, 2).head_major().bottom_right().half()},
        {"batched", Geometry({33, 1, 15}, {65, 31, 15}).dim(128).heads(3, 3).batched().padded()},
        {"batched_head_major", Geometry({17, 31}, {31, 17})
                                   .dim(64)
                                   .heads(2, 1)
                                   .batched()
                                   .head_major()
                                   .top_left()
                                   .dlse()
                                   .half()},
        {"skewed",
         Geometry({64, 127}, {64, 257}).dim(64).heads(2, 1).bottom_right().skewed().half()},
        {"skewed_full",
         Geometry({33, 31}, {127, 16}).dim(256).heads(3, 1).block(256).skewed().dlse().half()},
        {"skewed_small", Geometry({65, 17}, {33, 64}).dim(8).heads(7, 1).block(3).skewed().gaps()},
    };
}

/// Geometries with the options of the scores and values of another width than keys.
inline std::vector<std::pair<std::string, Geometry>> option_geometries() {
    return {
        // Values of another width, with plain kernels.
        {"values_192_128",
         Geometry({33, 17}, {65, 31}).dim(192).values(128).heads(4, 2).bottom_right().half()},
        {"values_128_96", Geometry({31, 65}, {64, 65}).dim(128).values(96).heads(3, 1).padded()},
        {"values_64_128",
         Geometry({64, 15}, {127, 33}).dim(64).values(128).heads(2, 1).block(17).half()},
        {"values_1_40",
         Geometry({17, 5}, {31, 65}).dim(1).values(40).heads(2, 2).batched().head_major()},
        {"values_72_8_shared", Geometry({17, 33}, {40, 64})
                                   .dim(72)
                                   .values(8)
                                   .heads(3, 1)
                                   .prefix(2)
                                   .bottom_right()
                                   .sinks()
                                   .dlse()
                                   .half()},
        {"values_33_512", Geometry({9}, {70}).dim(33).values(512).heads(2, 1)},

        // Softcaps that bend scores, that cut them off, and that hardly change them.
        {"softcap", Geometry({65, 31}, {65, 127}).dim(64).heads(4, 2).cap(2).bottom_right().half()},
        {"softcap_small", Geometry({33}, {64}).dim(40).heads(2, 2).cap(0.125).scaled(1).gaps()},
        {"softcap_large", Geometry({17, 64}, {33, 64}).dim(128).heads(2, 1).cap(1e6).skewed()},
        {"softcap_30", Geometry({64}, {127}).dim(64).cap(30).scaled(2).skewed().dlse().half()},
        {"softcap_high_scores", Geometry({33}, {64}).dim(64).heads(2, 1).cap(1000).scaled(64)},
        {"softcap_largest", Geometry({17}, {33}).dim(8).cap(0x1.fffffep127)},
        {"softcap_least", Geometry({17}, {33}).dim(8).cap(1e-38)},

        // ALiBi, which counts from the diagonal of each alignment.
        {"slopes", Geometry({65, 17}, {65, 127}).dim(64).heads(8, 2).slopes().half()},
        {"slopes_causal",
         Geometry({33, 64}, {127, 64}).dim(72).heads(4, 2).slopes().bottom_right().block(3)},
        {"slopes_top_left", Geometry({65, 33}, {31, 64}).dim(40).heads(4, 4).slopes().top_left()},
        {"slopes_window",
         Geometry({65, 127}, {65, 31}).dim(64).heads(3, 1).slopes().window(16, 3).dlse().half()},
        {"slopes_shared", Geometry({31, 15}, {64, 40})
                              .dim(64)
                              .heads(4, 1)
                              .slopes()
                              .bottom_right()
                              .table({{0, 1, 0, 2}, {1, 1, 1}})},

        // Sinks, with plain kernels too: rows without keys, and none at all.
        {"sinks", Geometry({65, 31}, {65, 127}).dim(64).heads(6, 2).sinks().bottom_right().half()},
        {"sinks_without_keys", Geometry({65, 5, 3}, {17, 0, 1})
                                   .dim(128)
                                   .heads(3, 1)
                                   .sinks()
                                   .bottom_right()
                                   .dlse()
                                   .half()},
        {"sinks_window", Geometry({33, 1}, {64, 127}).dim(8).heads(4, 4).sinks().window(5, -1)},
        {"sinks_many_heads", Geometry({1}, {5}).dim(8).heads(5000, 1).sinks()},
        {"sinks_of_nothing", Geometry({}, {}).dim(64).heads(4, 2).sinks().slopes()},
        {"sinks_no_queries", Geometry({0, 0}, {16, 33}).dim(64).heads(2, 1).sinks().slopes()},

        // Scales.
        {"scale_zero", Geometry({33}, {65}).dim(64).heads(2, 1).scaled(0).bottom_right().half()},
        {"scale_negative", Geometry({33}, {65}).dim(64).heads(2, 1).scaled(-0.25)},
        {"scale_huge", Geometry({33}, {65}).dim(64).heads(2, 1).scaled(0x1p100)},
        {"scale_huge_negative", Geometry({33}, {1}).dim(40).heads(2, 1).scaled(-0x1p100)},
        {"scale_huge_cap", Geometry({33}, {65}).dim(64).scaled(0x1p100).cap(1).slopes()},

        // Everything at once.
        {"all_options", Geometry({65, 33, 17}, {97, 65, 70})
                            .dim(64)
                            .values(40)
                            .heads(6, 2)
                            .cap(3)
                            .slopes()
                            .sinks()
                            .bottom_right()
                            .prefix(3)
                            .dlse()
                            .half()},
        {"all_options_batched", Geometry({31, 17}, {17, 65})
                                    .dim(128)
                                    .heads(4, 2)
                                    .cap(5)
                                    .slopes()
                                    .sinks()
                                    .batched()
                                    .padded()
                                    .top_left()
                                    .window(20, -1)
                                    .half()},
    };
}

}  // namespace pagegrad::test
