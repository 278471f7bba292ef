#include "select.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "error.hpp"

namespace posecrafter {
namespace {

// A sum in numpy's order (eight partial sums in blocks of 128), so that near ties are decided alike.
double sum(const double* values, std::size_t count) {
    if (count < 8) return std::accumulate(values, values + count, 0.0);
    if (count > 128) {
        const std::size_t left = count / 2 - count / 2 % 8;
        return sum(values, left) + sum(values + left, count - left);
    }
    std::array<double, 8> part{};
    std::copy_n(values, 8, part.begin());
    std::size_t i = 8;
    for (; i + 8 <= count; i += 8)
        for (std::size_t j = 0; j < 8; ++j) part[j] += values[i + j];
    double total = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    for (; i < count; ++i) total += values[i];
    return total;
}

double distance(const KeyPoint* a, const KeyPoint* b, double size) {
    std::array<double, key_points> gaps{};
    int shared = 0;
    for (std::size_t k = 0; k < key_points; ++k) {
        if (!a[k].visible() || !b[k].visible()) continue;
        const double x = double(b[k].x) - double(a[k].x), y = double(b[k].y) - double(a[k].y);
        gaps[k] = std::sqrt(x * x + y * y);
        ++shared;
    }
    return shared ? sum(gaps.data(), gaps.size()) / shared / size : std::numeric_limits<double>::quiet_NaN();
}

std::ptrdiff_t comparable(const Table& table, int row) {
    return std::count_if(table.row(row), table.row(row) + table.columns, [](double v) { return std::isfinite(v); });
}

}  // namespace

double Table::mean(int index) const {
    std::vector<double> known(row(index), row(index) + columns);
    for (double& value : known)
        if (std::isnan(value)) value = 0;
    const auto count = comparable(*this, index);
    return count ? sum(known.data(), known.size()) / double(count) : std::numeric_limits<double>::quiet_NaN();
}

Table distances(const Track& training, const Track& target) {
    const double size = std::max(training.width(), training.height());
    Table table{training.frames(), target.frames(), {}};
    for (int i = 0; i < table.rows; ++i)
        for (int j = 0; j < table.columns; ++j)
            table.values.push_back(distance(training.frame(i), target.frame(j), size));
    return table;
}

int select_reference(const Table& table) {
    std::ptrdiff_t most = 0;
    for (int i = 0; i < table.rows; ++i) most = std::max(most, comparable(table, i));
    if (most == 0)
        throw Error(
            Kind::pose, "no-common-key-points",
            "no visible key point is shared by the target and the training frames; check that both show a person");
    int best = -1;
    for (int i = 0; i < table.rows; ++i)
        if (comparable(table, i) == most && (best < 0 || table.mean(i) < table.mean(best))) best = i;
    return best;
}

}  // namespace posecrafter
