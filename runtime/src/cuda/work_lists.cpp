#include "work_lists.h"

#include "task_order.h"

namespace pagegrad::cuda {

WorkLists make_work_lists(const pagegrad_plan &plan, const WorkSchedule &schedule) {
    WorkLists lists;
    add_backward_tasks(plan, schedule, lists.backward);
    add_forward_tasks(plan, schedule, lists);
    return lists;
}

}  // namespace pagegrad::cuda
