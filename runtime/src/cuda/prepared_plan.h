/// Copies of a plan's work lists in the memory of GPUs, one for each context that uses the plan.
#pragma once

#include "../plan.h"
#include "driver.h"
#include "work_lists.h"

#include <map>
#include <mutex>

namespace pagegrad::cuda {

/// A list of tasks in the memory of a GPU.
template<typename Task>
struct DeviceTaskList {
    int64_t num_tasks = 0;
    Task *tasks = nullptr;
    Query *packed_queries = nullptr, *batched_queries = nullptr;
    int32_t *blocks = nullptr;  ///< that tasks read
};

/// Work lists in the memory of a GPU.
struct DeviceLists {
    DeviceTaskList<KeyTask> keys;
    DeviceTaskList<QueryTask> queries;
    bool has_blind_queries = false;
};

/// The copies of one plan. Freed with it.
class PreparedPlan {
public:
    PreparedPlan() = default;
    PreparedPlan(const PreparedPlan &) = delete;
    ~PreparedPlan();

    /// The lists in the context of `place`. The first call for a context loads the kernels, copies
    /// the lists and waits for the copy, and so fails while the stream is being captured.
    const DeviceLists &lists(const pagegrad_plan &plan, const Place &place);

private:
    struct Copy {
        Context context = nullptr;
        Address memory = nullptr;
        DeviceLists lists;
    };
    static Copy copy(const pagegrad_plan &plan, const Place &place);

    std::mutex mutex;
    std::map<unsigned long long, Copy> copies;  ///< by the id of the context
};

}  // namespace pagegrad::cuda
