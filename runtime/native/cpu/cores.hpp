// How many threads are worth starting.
#pragma once

#include <string>

namespace posecrafter::cpu {

/* Cores that this process may run on, or fewer where its control groups give it less time than those have. */
int usable_cores();

/* Cores' worth of time that Linux's control groups grant, as `docker run --cpus` and Kubernetes' limits set it, rounded
 * up; 0 where they set no limit. Threads beyond it stand still together until the next period. root: of the file
 * system. */
int granted_cores(const std::string& root = "");

}  // namespace posecrafter::cpu
