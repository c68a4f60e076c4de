#include "plan.h"

#include "cuda/prepared_plan.h"
#include "status.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace pagegrad {
namespace {

constexpr int64_t max_int32 = std::numeric_limits<int32_t>::max();
constexpr int64_t max_int64 = std::numeric_limits<int64_t>::max();
/// So that the rows of a token, with all that kernels round up to, can be counted in 32 bits.
constexpr int32_t max_heads = 1 << 16;
/// So that kernels may round the end of a tile up in 32 bits.
constexpr int32_t max_keys = max_int32 - 1024;
/// Of a block table: more than a process can address.
constexpr int64_t max_table = int64_t{1} << 54;

void check_geometry(const pagegrad_plan_desc &desc) {
    require(desc.struct_size == sizeof desc, "struct_size is ", desc.struct_size, ", expected ",
            sizeof desc);
    require(desc.num_kv_heads >= 1, "num_kv_heads is ", desc.num_kv_heads, ", expected >= 1");
    require(desc.num_heads >= 1 && desc.num_heads % desc.num_kv_heads == 0, "num_heads is ",
            desc.num_heads, ", expected a positive multiple of num_kv_heads, ", desc.num_kv_heads);
    if (desc.num_heads > max_heads) {
        fail(PAGEGRAD_UNSUPPORTED, "num_heads is ", desc.num_heads, ", expected <= ", max_heads);
    }
    require(desc.head_dim >= 1 && desc.head_dim <= 512, "head_dim is ", desc.head_dim,
            ", expected 1..512");
    require(desc.value_head_dim >= 0 && desc.value_head_dim <= 512, "value_head_dim is ",
            desc.value_head_dim, ", expected 1..512, or 0 for head_dim");
    require(desc.mask >= PAGEGRAD_MASK_NONE && desc.mask <= PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT,
            "mask is ", desc.mask, ", expected a pagegrad_mask, 0..2");
    require(desc.window_left >= -1, "window_left is ", desc.window_left,
            ", expected >= 0, or -1 for no bound");
    require(desc.window_right >= -1, "window_right is ", desc.window_right,
            ", expected >= 0, or -1 for no bound");
}

void check_paging(const pagegrad_plan_desc &desc) {
    require(desc.num_sequences >= 0, "num_sequences is ", desc.num_sequences, ", expected >= 0");
    require(desc.block_size >= 1, "block_size is ", desc.block_size, ", expected >= 1");
    require(desc.num_blocks >= 0, "num_blocks is ", desc.num_blocks, ", expected >= 0");
    require(desc.max_blocks >= 0, "max_blocks is ", desc.max_blocks, ", expected >= 0");
    require(desc.block_table_stride >= desc.max_blocks, "block_table_stride is ",
            desc.block_table_stride, ", expected >= max_blocks, ", desc.max_blocks);
    if (desc.num_sequences > 0) {
        const int64_t max_stride = max_table / desc.num_sequences;
        require(desc.block_table_stride <= max_stride, "block_table_stride is ",
                desc.block_table_stride, ", expected <= ", max_stride);
        require(desc.query_length != nullptr, "query_length is NULL, expected ", desc.num_sequences,
                " lengths");
        require(desc.kv_length != nullptr, "kv_length is NULL, expected ", desc.num_sequences,
                " lengths");
    }
}

pagegrad_plan plan_without_sequences(const pagegrad_plan_desc &desc) {
    pagegrad_plan plan{};
    plan.num_heads = desc.num_heads;
    plan.num_kv_heads = desc.num_kv_heads;
    plan.head_dim = desc.head_dim;
    plan.value_head_dim = desc.value_head_dim > 0 ? desc.value_head_dim : desc.head_dim;
    plan.mask = static_cast<pagegrad_mask>(desc.mask);
    plan.window_left = desc.window_left;
    plan.window_right = desc.window_right;
    plan.block_size = desc.block_size;
    plan.num_blocks = desc.num_blocks;
    return plan;
}

/// Checks lengths and starts of sequence b.
void check_sequence(const pagegrad_plan_desc &desc, int32_t b) {
    const int64_t capacity = int64_t{desc.max_blocks} * desc.block_size;
    require(desc.query_length[b] >= 0, "query_length[", b, "] is ", desc.query_length[b],
            ", expected >= 0");
    require(desc.kv_length[b] >= 0 && desc.kv_length[b] <= capacity, "kv_length[", b, "] is ",
            desc.kv_length[b], ", expected 0..max_blocks * block_size, ", capacity);
    if (desc.kv_length[b] > max_keys) {
        fail(PAGEGRAD_UNSUPPORTED, "kv_length[", b, "] is ", desc.kv_length[b],
             ", expected <= ", max_keys);
    }
    if (desc.query_start != nullptr) {
        require(desc.query_start[b] >= 0, "query_start[", b, "] is ", desc.query_start[b],
                ", expected >= 0");
    }
}

/// Bounds the work of the batch, so that no sum over pairs, rows or heads can overflow.
void check_work(const pagegrad_plan &plan) {
    const int64_t limit = max_int64 / plan.num_heads;
    int64_t pairs = 0;
    for (const Sequence &sequence : plan.sequences) {
        const int64_t more = int64_t{sequence.query_length} * sequence.kv_length;
        if (more > limit - pairs) {
            fail(PAGEGRAD_UNSUPPORTED,
                 "query_length, kv_length: the sum of num_heads * query_length * kv_length is too "
                 "large, expected <= ",
                 max_int64);
        }
        pairs += more;
    }
}

/// Appends the sequences, without their uses. Returns the number of table entries they use.
int32_t add_sequences(const pagegrad_plan_desc &desc, pagegrad_plan &plan) {
    int64_t entries = 0;
    plan.sequences.reserve(desc.num_sequences);
    for (int32_t b = 0; b < desc.num_sequences; b++) {
        check_sequence(desc, b);
        Sequence sequence{};
        sequence.query_start = desc.query_start ? desc.query_start[b] : plan.query_tokens;
        sequence.query_length = desc.query_length[b];
        sequence.kv_length = desc.kv_length[b];
        sequence.kv_start = plan.kv_tokens;
        sequence.table_begin = static_cast<int32_t>(entries);
        plan.sequences.push_back(sequence);

        entries += sequence.num_blocks(plan.block_size);
        if (entries > max_int32) {
            fail(PAGEGRAD_UNSUPPORTED, "kv_length: the sequences up to ", b, " use ", entries,
                 " entries of block_table, expected <= ", max_int32);
        }
        plan.max_query_length = std::max<int64_t>(plan.max_query_length, sequence.query_length);
        plan.query_tokens += sequence.query_length;
        plan.kv_tokens += sequence.kv_length;
        if (sequence.query_length > 0) {
            plan.query_end = std::max(plan.query_end, sequence.query_start + sequence.query_length);
        }
    }
    return static_cast<int32_t>(entries);
}

/// Refuses sequences that share a token of packed tensors.
void check_query_ranges(const pagegrad_plan &plan) {
    const std::vector<Sequence> &sequences = plan.sequences;
    std::vector<int32_t> order;
    order.reserve(sequences.size());
    for (size_t b = 0; b < sequences.size(); b++) {
        if (sequences[b].query_length > 0) {
            order.push_back(static_cast<int32_t>(b));
        }
    }
    const auto earlier = [&](int32_t a, int32_t b) {
        return sequences[a].query_start < sequences[b].query_start;
    };
    // Nearly always in order already, and then this keeps the time linear.
    if (!std::is_sorted(order.begin(), order.end(), earlier)) {
        std::sort(order.begin(), order.end(), earlier);
    }
    for (size_t i = 1; i < order.size(); i++) {
        const Sequence &before = sequences[order[i - 1]];
        const int64_t end = before.query_start + before.query_length;
        const int64_t start = sequences[order[i]].query_start;
        require(start >= end, "query_start[", order[i], "] is ", start, ", inside the tokens of ",
                "sequence ", order[i - 1], ", expected >= ", end);
    }
}

/// Copies the used entries of the block table. Nothing right of them is read.
void read_table(const pagegrad_plan_desc &desc, int32_t entries, pagegrad_plan &plan) {
    require(entries == 0 || desc.block_table != nullptr, "block_table is NULL, expected ", entries,
            " block ids");
    plan.table.reserve(entries);
    for (int32_t b = 0; b < desc.num_sequences; b++) {
        const int32_t columns = plan.sequences[b].num_blocks(plan.block_size);
        for (int32_t column = 0; column < columns; column++) {
            const int32_t block = desc.block_table[b * desc.block_table_stride + column];
            require(block >= 0 && block < desc.num_blocks, "block_table[", b, "][", column, "] is ",
                    block, ", expected 0..num_blocks - 1, ", desc.num_blocks - 1);
            plan.table.push_back(block);
        }
    }
}

template<typename Key>
struct Keyed {
    Key key;
    int32_t index;
};

/// Sorts by an unsigned key: stable and, being a radix sort, in linear time.
template<typename Key>
void sort_by_key(std::vector<Keyed<Key>> &items) {
    constexpr int bits = 8;
    constexpr Key buckets = Key{1} << bits;
    Key max_key = 0;
    for (const Keyed<Key> &item : items) {
        max_key = std::max(max_key, item.key);
    }
    std::vector<Keyed<Key>> sorted(items.size());
    for (int shift = 0; shift < std::numeric_limits<Key>::digits && max_key >> shift != 0;
         shift += bits) {
        std::array<int32_t, buckets> place{};
        for (const Keyed<Key> &item : items) {
            place[(item.key >> shift) % buckets]++;
        }
        std::exclusive_scan(place.begin(), place.end(), place.begin(), 0);
        for (const Keyed<Key> &item : items) {
            sorted[place[(item.key >> shift) % buckets]++] = item;
        }
        items.swap(sorted);
    }
}

/// Walks the table and cuts what it names into runs.
class RunBuilder {
public:
    explicit RunBuilder(pagegrad_plan &plan) : plan(plan) {
        plan.blocks.reserve(plan.table.size());
    }

    void build() {
        list_entries();
        link_entries();
        for (int32_t entry = 0; entry < count(); entry++) {
            if (is_first[entry]) {
                add_blocks(entry);
            }
        }
    }

private:
    static constexpr int32_t none = -1;

    /// A used entry of the table.
    struct Entry {
        int32_t sequence;
        int32_t next;  ///< in the list of those that name the same block, or none
    };

    /// A sequence with queries at the block being added.
    struct BlockUser {
        int32_t sequence;
        int32_t first_key;  ///< the one in slot 0
        int32_t num_keys;   ///< seen in this block
    };

    pagegrad_plan &plan;
    std::vector<Entry> entries;
    std::vector<bool> is_first;  ///< of the entries of a block that is still to be added
    std::vector<BlockUser> block_users;

    int32_t count() const {
        return static_cast<int32_t>(entries.size());
    }

    void list_entries() {
        is_first.assign(plan.table.size(), true);
        entries.reserve(plan.table.size());
        for (size_t b = 0; b < plan.sequences.size(); b++) {
            entries.resize(entries.size() + plan.sequences[b].num_blocks(plan.block_size),
                           {static_cast<int32_t>(b), none});
        }
    }

    /// Links the entries that name the same block. The array is the fastest way, but would make
    /// time and memory depend on the size of a pool of which little is used.
    void link_entries() {
        if (plan.num_blocks <= 4 * int64_t{count()}) {
            link_by_array();
        } else {
            link_by_sorting();
        }
    }

    void link(int32_t before, int32_t entry) {
        entries[before].next = entry;
        is_first[entry] = false;
    }

    void link_by_array() {
        std::vector<int32_t> last_entry(plan.num_blocks, none);
        for_each_entry([&](int32_t entry) {
            int32_t &last = last_entry[plan.table[entry]];
            if (last != none) {
                link(last, entry);
            }
            last = entry;
        });
    }

    void link_by_sorting() {
        std::vector<Keyed<uint32_t>> by_block;
        by_block.reserve(entries.size());
        for_each_entry([&](int32_t entry) {
            by_block.push_back({static_cast<uint32_t>(plan.table[entry]), entry});
        });
        sort_by_key(by_block);
        for (size_t i = 1; i < by_block.size(); i++) {
            if (by_block[i].key == by_block[i - 1].key) {
                link(by_block[i - 1].index, by_block[i].index);
            }
        }
    }

    /// Visits the entries in order, those of sequences without queries last: only their pool rows
    /// count, so they must not decide where a run begins.
    template<typename Visit>
    void for_each_entry(const Visit &visit) const {
        for (const bool with_queries : {true, false}) {
            for (const Sequence &sequence : plan.sequences) {
                if ((sequence.query_length > 0) == with_queries) {
                    const int32_t columns = sequence.num_blocks(plan.block_size);
                    for (int32_t column = 0; column < columns; column++) {
                        visit(sequence.table_begin + column);
                    }
                }
            }
        }
    }

    /// Finds the users of a block from the first entry that names it. Sequences without queries
    /// only count as users of pool rows.
    void find_users(int32_t first_entry) {
        block_users.clear();
        int32_t rows = 0;
        for (int32_t entry = first_entry; entry != none; entry = entries[entry].next) {
            const int32_t b = entries[entry].sequence;
            const Sequence &sequence = plan.sequences[b];
            const int32_t first_key = (entry - sequence.table_begin) * plan.block_size;
            const int32_t num_keys = std::min(plan.block_size, sequence.kv_length - first_key);
            rows = std::max(rows, num_keys);
            if (sequence.query_length > 0) {
                block_users.push_back({b, first_key, num_keys});
            }
        }
        plan.pool_rows += rows;
    }

    /// Adds the block that an entry is the first to name. If its last run is not one of this
    /// entry's sequence, adds what may continue that run too: else other runs would come between.
    void add_blocks(int32_t entry) {
        int32_t last = add_block(entry);
        while (last != entry && last + 1 < count() && is_first[last + 1] &&
               entries[last + 1].sequence == entries[last].sequence) {
            last = add_block(last + 1);
        }
    }

    /// Adds one block, cut where one of its users ends. Returns the entry of the first user of the
    /// last part.
    int32_t add_block(int32_t entry) {
        is_first[entry] = false;
        find_users(entry);
        if (block_users.empty()) {
            return entry;
        }
        plan.blocks.push_back(plan.table[entry]);
        int32_t slot = add_part(0);
        while (!block_users.empty()) {
            entry = entry_of(block_users.front());
            slot = add_part(slot);
        }
        return entry;
    }

    /// Adds slots from `slot` on, up to the end of a user. Returns that end, and drops who ends.
    int32_t add_part(int32_t slot) {
        int32_t end = plan.block_size;
        for (const BlockUser &user : block_users) {
            end = std::min(end, user.num_keys);
        }
        if (!continues_run(slot)) {
            start_run(slot);
        }
        plan.runs.back().num_keys += end - slot;
        const auto ends = [end](const BlockUser &user) { return user.num_keys == end; };
        block_users.erase(std::remove_if(block_users.begin(), block_users.end(), ends),
                          block_users.end());
        return end;
    }

    int32_t entry_of(const BlockUser &user) const {
        return plan.sequences[user.sequence].table_begin + user.first_key / plan.block_size;
    }

    /// Whether `slot` holds the next key for every user of the last run, and for nobody else.
    bool continues_run(int32_t slot) const {
        if (plan.runs.empty()) {
            return false;
        }
        const Run &run = plan.runs.back();
        const auto is_next = [&](const RunUser &before, const BlockUser &user) {
            return before.sequence == user.sequence &&
                   before.first_key + run.num_keys == user.first_key + slot;
        };
        return std::equal(plan.users.begin() + run.users_begin, plan.users.begin() + run.users_end,
                          block_users.begin(), block_users.end(), is_next);
    }

    void start_run(int32_t slot) {
        const size_t begin = plan.users.size(), end = begin + block_users.size();
        if (end > static_cast<size_t>(max_int32)) {
            fail(PAGEGRAD_UNSUPPORTED, "block_table: shared blocks have ", end,
                 " users, expected <= ", max_int32);
        }
        for (const BlockUser &user : block_users) {
            plan.users.push_back({user.sequence, user.first_key + slot});
        }
        plan.runs.push_back({static_cast<int32_t>(plan.blocks.size() - 1), slot, 0,
                             static_cast<int32_t>(begin), static_cast<int32_t>(end)});
    }
};

/// Most work first: whoever comes last then has little left to wait for.
void order_runs(pagegrad_plan &plan) {
    std::vector<Keyed<uint64_t>> order;
    order.reserve(plan.runs.size());
    uint64_t most = 0;
    for (const Run &run : plan.runs) {
        const uint64_t work = run.num_keys * visible_tokens(plan, run);
        most = std::max(most, work);
        order.push_back({work, static_cast<int32_t>(order.size())});
    }
    for (Keyed<uint64_t> &item : order) {
        item.key = most - item.key;
    }
    sort_by_key(order);
    std::vector<Run> runs;
    runs.reserve(plan.runs.size());
    for (const Keyed<uint64_t> &item : order) {
        runs.push_back(plan.runs[item.index]);
    }
    plan.runs.swap(runs);
}

/// Lists the runs of every sequence.
void list_uses(pagegrad_plan &plan) {
    for (const RunUser &user : plan.users) {
        plan.sequences[user.sequence].uses_end++;
    }
    int32_t end = 0;
    for (Sequence &sequence : plan.sequences) {
        sequence.uses_begin = end;
        end += std::exchange(sequence.uses_end, end);
    }
    plan.uses.resize(plan.users.size());
    for (size_t r = 0; r < plan.runs.size(); r++) {
        for (int32_t u = plan.runs[r].users_begin; u < plan.runs[r].users_end; u++) {
            Sequence &sequence = plan.sequences[plan.users[u].sequence];
            plan.uses[sequence.uses_end++] = {static_cast<int32_t>(r), u};
        }
    }
}

}  // namespace

pagegrad_plan make_plan(const pagegrad_plan_desc &desc) {
    check_geometry(desc);
    check_paging(desc);
    pagegrad_plan plan = plan_without_sequences(desc);
    const int32_t entries = add_sequences(desc, plan);
    check_work(plan);
    check_query_ranges(plan);
    read_table(desc, entries, plan);
    for (const Sequence &sequence : plan.sequences) {
        plan.visible_pairs += plan.visibility(sequence).pairs();
    }
    RunBuilder(plan).build();
    order_runs(plan);
    list_uses(plan);
    plan.prepared = std::make_shared<cuda::PreparedPlan>();
    return plan;
}

int64_t visible_tokens(const pagegrad_plan &plan, const Run &run) {
    int64_t tokens = 0;
    for (int32_t u = run.users_begin; u < run.users_end; u++) {
        const RunUser &user = plan.users[u];
        const int64_t begin = user.first_key;
        tokens += plan.visibility(plan.sequences[user.sequence])
                      .queries({begin, begin + run.num_keys})
                      .size();
    }
    return tokens;
}

pagegrad_plan_info describe(const pagegrad_plan &plan) {
    pagegrad_plan_info info{};
    info.struct_size = sizeof info;
    info.query_tokens = plan.query_tokens;
    info.kv_tokens = plan.kv_tokens;
    info.pool_rows = plan.pool_rows;
    info.runs = static_cast<int64_t>(plan.runs.size());
    info.visible_pairs = plan.visible_pairs;
    for (const Run &run : plan.runs) {
        info.shared_runs += run.users_end - run.users_begin > 1;
        info.packed_rows += visible_tokens(plan, run) * plan.group();
    }
    return info;
}

}  // namespace pagegrad
