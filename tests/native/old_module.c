#include "engine.h"

/* The number comes first in every release's table, and nothing behind it is looked at once it differs. */
const pc_engine_module* pc_engine_module_v1(void) {
    static const pc_engine_module old = {.abi = PC_ENGINE_ABI - 1, .name = "old"};
    return &old;
}
