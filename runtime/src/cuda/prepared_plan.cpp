#include "prepared_plan.h"

#include "../status.h"
#include "../workspace.h"
#include "device_kernels.h"

namespace pagegrad::cuda {

namespace {

template<typename T>
T *take_for(Carver &carver, const std::vector<T> &list) {
    return carver.take<T>(static_cast<int64_t>(list.size()));
}

DeviceLists carve(const WorkLists &lists, const pagegrad_plan &plan, Carver &carver) {
    DeviceLists pieces;
    pieces.num_tasks = static_cast<int64_t>(lists.tasks.size());
    pieces.tasks = take_for(carver, lists.tasks);
    pieces.packed_queries = take_for(carver, lists.packed_queries);
    pieces.batched_queries = take_for(carver, lists.batched_queries);
    pieces.blocks = take_for(carver, plan.blocks);
    return pieces;
}

template<typename T>
void copy_list(T *to, const std::vector<T> &from, Stream stream) {
    if (!from.empty()) {
        check(driver().copy_to_device(to, from.data(), from.size() * sizeof(T), stream),
              "copying the plan to the GPU");
    }
}

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

    const WorkLists lists = make_work_lists(plan);
    Carver counter(nullptr);
    carve(lists, plan, counter);
    Copy copy;
    copy.context = place.context;
    if (lists.tasks.empty()) {
        return copy;
    }
    check(driver().allocate(&copy.memory, counter.size()), "memory for the plan on the GPU");
    Carver carver(copy.memory);
    copy.lists = carve(lists, plan, carver);
    try {
        copy_list(copy.lists.tasks, lists.tasks, place.stream);
        copy_list(copy.lists.packed_queries, lists.packed_queries, place.stream);
        copy_list(copy.lists.batched_queries, lists.batched_queries, place.stream);
        copy_list(copy.lists.blocks, plan.blocks, place.stream);
        check(driver().synchronize_stream(place.stream), "cuStreamSynchronize");
    } catch (...) {
        driver().free(copy.memory);
        throw;
    }
    return copy;
}

}  // namespace pagegrad::cuda
