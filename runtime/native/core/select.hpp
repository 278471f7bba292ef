// Reference selection: the training frame whose pose is nearest to the whole target.
#pragma once

#include <vector>

#include "track.hpp"

namespace posecrafter {

// Rows of training frames, columns of target frames; NaN where a pair shares no visible key point.
struct Table {
    int rows = 0, columns = 0;
    std::vector<double> values;

    const double* row(int index) const { return values.data() + std::size_t(index) * std::size_t(columns); }
    // The mean over a row's pairs that can be compared; NaN without one.
    double mean(int index) const;
};

// Mean distance over the key points visible in both, as a share of the longer side. Both tracks lie on one canvas.
Table distances(const Track& training, const Track& target);
// The row with the least mean among those with the most comparable pairs. Throws Error "no-common-key-points".
int select_reference(const Table& table);

}  // namespace posecrafter
