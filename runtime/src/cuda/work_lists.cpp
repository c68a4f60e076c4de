#include "work_lists.h"

#include "task_order.h"

namespace pagegrad::cuda {

WorkLists make_work_lists(const pagegrad_plan &plan, const WorkSchedule &schedule) {
    WorkLists lists;
    add_key_tasks(plan, schedule, lists);
    add_query_tasks(plan, schedule, lists);
    return lists;
}

}  // namespace pagegrad::cuda
