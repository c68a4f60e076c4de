/// Copies of a plan's work lists in the memory of GPUs, one for each context that uses the plan.
#pragma once

#include "../plan.h"
#include "driver.h"
#include "work_lists.h"

#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace pagegrad::cuda {

/// A list of tasks in the memory of a GPU.
template<typename Task>
struct DeviceTaskList {
    std::vector<size_t> launch_end;  ///< on the host
    Task *tasks = nullptr;
    Query *packed_queries = nullptr, *batched_queries = nullptr;
    int32_t *blocks = nullptr;  ///< that tasks read
};

/// Work lists in the memory of a GPU.
struct DeviceLists {
    DeviceTaskList<BackwardTask> backward;
    DeviceTaskList<ForwardTask> forward;
    bool has_blind_queries = false;
};

/// The copies of one plan. Freed with it.
class PreparedPlan {
public:
    PreparedPlan() = default;
    PreparedPlan(const PreparedPlan &) = delete;
    ~PreparedPlan();

    /// The lists in the context of `place`, with sums in a fixed order or not. The first call for a
    /// context loads the kernels, copies the lists and waits for the copy, and so fails while the
    /// stream is being captured.
    const DeviceLists &lists(const pagegrad_plan &plan, bool ordered, const Place &place);

private:
    struct Copy {
        Context context = nullptr;
        Address memory = nullptr;
        DeviceLists lists;
    };
    static Copy copy(const pagegrad_plan &plan, bool ordered, const Place &place);

    std::mutex mutex;
    std::map<std::pair<unsigned long long, bool>, Copy> copies;  ///< by context id and order
};

}  // namespace pagegrad::cuda
