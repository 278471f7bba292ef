#include "cores.hpp"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

namespace posecrafter::cpu {

namespace {

int allowed_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// A quota and its period, in one file or two, as cores; 0 for a group without: version 2 says "max", version 1 -1.
double limit(const std::string& group, bool first_version) {
    double quota = 0, period = 0;
    if (first_version)
        std::ifstream(group + "/cpu.cfs_quota_us") >> quota, std::ifstream(group + "/cpu.cfs_period_us") >> period;
    else
        std::ifstream(group + "/cpu.max") >> quota >> period;
    return quota > 0 && period > 0 ? quota / period : 0;
}

}  // namespace

int granted_cores(const std::string& root) {
    double least = 0;
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // number:controllers:group
        std::istringstream words(line);
        std::string number, controllers, group;
        std::getline(std::getline(std::getline(words, number, ':'), controllers, ':'), group);
        const bool first_version = !controllers.empty();
        if (first_version && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
        const std::string top = root + "/sys/fs/cgroup" + (first_version ? "/cpu" : "");
        // Its own group and those around it, as far as this process sees them: in a container its own is often the top.
        for (std::string path = group == "/" ? "" : group;; path.resize(path.rfind('/'))) {
            const double granted = limit(top + path, first_version);
            if (granted > 0 && (least == 0 || granted < least)) least = granted;
            if (path.find('/') == std::string::npos) break;
        }
    }
    return static_cast<int>(std::ceil(least));
}

int usable_cores() {
    const int allowed = allowed_cores(), granted = granted_cores();
    return granted > 0 ? std::min(allowed, granted) : allowed;
}

}  // namespace posecrafter::cpu
