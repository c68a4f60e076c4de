#include "prepared_plan.h"

#include "../status.h"
#include "../workspace.h"
#include "device_kernels.h"

namespace pagegrad::cuda {

namespace {

/// Work lists and the memory that they are copied to, piece by piece. Without memory it only
/// counts.
class ListCopier {
public:
    ListCopier(void *memory, Stream stream)
        : carver(memory), copies(memory != nullptr), stream(stream) {
    }

    DeviceLists copy(const WorkLists &lists, const pagegrad_plan &plan) {
        return {copy(lists.keys, plan.blocks), copy(lists.queries, plan.table),
                lists.has_blind_queries};
    }
    size_t size() const {
        return carver.size();
    }

private:
    template<typename Task>
    DeviceTaskList<Task> copy(const TaskList<Task> &list, const std::vector<int32_t> &blocks) {
        return {static_cast<int64_t>(list.tasks.size()), copy(list.tasks),
                copy(list.packed_queries), copy(list.batched_queries), copy(blocks)};
    }

    template<typename T>
    T *copy(const std::vector<T> &list) {
        T *to = carver.take<T>(static_cast<int64_t>(list.size()));
        if (copies && !list.empty()) {
            check(driver().copy_to_device(to, list.data(), list.size() * sizeof(T), stream),
                  "copying the plan to the GPU");
        }
        return to;
    }

    Carver carver;
    const bool copies;
    const Stream stream;
};

}  // namespace

PreparedPlan::~PreparedPlan() {
    for (const auto &item : copies) {
        // A context that is gone has freed its memory; nobody is there to be told of an error.
        if (item.second.memory && driver().push_context(item.second.context) == success) {
            driver().free(item.second.memory);
            driver().pop_context(nullptr);
        }
    }
}

const DeviceLists &PreparedPlan::lists(const pagegrad_plan &plan, const Place &place) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto found = copies.find(place.context_id);
    if (found == copies.end()) {
        found = copies.emplace(place.context_id, copy(plan, place)).first;
    }
    return found->second.lists;
}

PreparedPlan::Copy PreparedPlan::copy(const pagegrad_plan &plan, const Place &place) {
    CaptureStatus capturing = CaptureStatus::none;
    check(driver().stream_capture_status(place.stream, &capturing), "cuStreamIsCapturing");
    require(capturing == CaptureStatus::none,
            "execution.stream is being captured, expected a call of pagegrad_plan_prepare before");
    load_kernels(plan.head_dim, place);

    const WorkLists lists = make_work_lists(plan, WorkSchedule::of_head_dim(plan.head_dim));
    ListCopier counter(nullptr, place.stream);
    counter.copy(lists, plan);
    Copy copy;
    copy.context = place.context;
    if (counter.size() == 0) {
        return copy;
    }
    check(driver().allocate(&copy.memory, counter.size()), "memory for the plan on the GPU");
    try {
        copy.lists = ListCopier(copy.memory, place.stream).copy(lists, plan);
        check(driver().synchronize_stream(place.stream), "cuStreamSynchronize");
    } catch (...) {
        driver().free(copy.memory);
        throw;
    }
    return copy;
}

}  // namespace pagegrad::cuda
