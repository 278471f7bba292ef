#include "edit.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <optional>

#include "error.hpp"

namespace posecrafter {
namespace {

// The spread of the points across their main direction, relative to along it, under which six parameters are not fixed.
constexpr double flat = 0.05;
// The change of area beyond which an affine fit is taken for a fit to noise.
constexpr double least_area = 0.2, greatest_area = 5.0;

// Second moments of matched points about their means: p of the reference, q of the target.
struct Moments {
    int count = 0;
    long double px = 0, py = 0, qx = 0, qy = 0;                                 // means
    long double pxx = 0, pxy = 0, pyy = 0, qxx = 0, qxy = 0, qyx = 0, qyy = 0;  // sums; qxy: target x with reference y
};

Moments moments_of(const KeyPoint* p, const KeyPoint* q, Part part) {
    Moments m;
    const auto each = [&](auto visit) {
        for (int i = part.first; i < part.last; ++i)
            if (p[i].visible() && q[i].visible()) visit(p[i], q[i]);
    };
    each([&](const KeyPoint& a, const KeyPoint& b) {
        ++m.count;
        m.px += a.x, m.py += a.y, m.qx += b.x, m.qy += b.y;
    });
    if (!m.count) return m;
    m.px /= m.count, m.py /= m.count, m.qx /= m.count, m.qy /= m.count;
    each([&](const KeyPoint& a, const KeyPoint& b) {
        const long double x = a.x - m.px, y = a.y - m.py, u = b.x - m.qx, v = b.y - m.qy;
        m.pxx += x * x, m.pxy += x * y, m.pyy += y * y;
        m.qxx += u * x, m.qxy += u * y, m.qyx += v * x, m.qyy += v * y;
    });
    return m;
}

// With the shift that takes the reference's mean to the target's.
Affine around_means(const Moments& m, long double a, long double b, long double c, long double d) {
    return {double(a), double(b), double(m.qx - a * m.px - b * m.py),
            double(c), double(d), double(m.qy - c * m.px - d * m.py)};
}

// Least squares with six parameters: the normal equations about the means, whose matrix is well conditioned here,
// since flat point sets are fitted with four.
Affine fit_affine(const Moments& m) {
    const long double det = m.pxx * m.pyy - m.pxy * m.pxy;
    return around_means(m, (m.qxx * m.pyy - m.qxy * m.pxy) / det, (m.qxy * m.pxx - m.qxx * m.pxy) / det,
                        (m.qyx * m.pyy - m.qyy * m.pxy) / det, (m.qyy * m.pxx - m.qyx * m.pxy) / det);
}

// Least squares with rotation, scale and shift, without reflection.
Affine fit_similarity(const Moments& m) {
    const long double norm = m.pxx + m.pyy, cosine = (m.qxx + m.qyy) / norm, sine = (m.qyx - m.qxy) / norm;
    return around_means(m, cosine, -sine, sine, cosine);
}

double area(const Affine& a) {
    return a[0] * a[4] - a[1] * a[3];
}

bool is_plausible(double change) {
    return change >= least_area && change <= greatest_area;
}

bool find_box(const KeyPoint* target, Part part, const Cells& cells, int factor, Motion& motion) {
    double left = INFINITY, right = -INFINITY, top = INFINITY, bottom = -INFINITY;
    for (int i = part.first; i < part.last; ++i) {
        if (!target[i].visible()) continue;
        left = std::min<double>(left, target[i].x), right = std::max<double>(right, target[i].x);
        top = std::min<double>(top, target[i].y), bottom = std::max<double>(bottom, target[i].y);
    }
    const auto cell = [&](double value, int limit) { return static_cast<int>(std::clamp<double>(value, 0, limit)); };
    motion.left = cell(std::floor(left / factor), cells.wide), motion.top = cell(std::floor(top / factor), cells.high);
    motion.right = cell(std::ceil(right / factor), cells.wide),
    motion.bottom = cell(std::ceil(bottom / factor), cells.high);
    return motion.left < motion.right && motion.top < motion.bottom;
}

// Where in the source the centre of a target cell comes from, in cells.
class Origin {
  public:
    Origin(const Affine& a, int factor) : a_(a), factor_(factor), det_(area(a)) {}

    std::pair<double, double> of(int u, int v) const {
        const double x = (u + 0.5) * factor_ - a_[2], y = (v + 0.5) * factor_ - a_[5];
        return {cells((a_[4] * x - a_[1] * y) / det_), cells((a_[0] * y - a_[3] * x) / det_)};
    }

  private:
    // Rounded, so that a move by whole cells finds whole cells.
    double cells(double pixels) const { return std::nearbyint((pixels / factor_ - 0.5) * 1e6) / 1e6; }

    Affine a_;
    int factor_;
    double det_;
};

// Up to four source cells and their weights.
struct Sample {
    std::array<std::size_t, 4> place{};
    std::array<double, 4> weight{};
    int count = 0;
    double norm = 1;
};

Sample sample_at(double u, double v, const Cells& cells, Warp warp) {
    const auto place = [&](double x, double y) {
        const int column = std::clamp(static_cast<int>(x), 0, cells.wide - 1);
        const int line = std::clamp(static_cast<int>(y), 0, cells.high - 1);
        return std::size_t(line) * std::size_t(cells.wide) + std::size_t(column);
    };
    Sample out;
    if (warp == Warp::nearest) {
        out.place[0] = place(std::floor(u + 0.5), std::floor(v + 0.5));
        out.count = 1;
        return out;
    }
    const double left = std::floor(u), top = std::floor(v);
    double square = 0;
    for (const int down : {0, 1})
        for (const int right : {0, 1}) {
            const double weight = std::abs(1 - right - (u - left)) * std::abs(1 - down - (v - top));
            out.place[std::size_t(out.count)] = place(left + right, top + down);
            out.weight[std::size_t(out.count++)] = weight;
            square += weight * weight;
        }
    out.norm = std::sqrt(square);
    return out;
}

}  // namespace

std::variant<Motion, std::string> fit_motion(const KeyPoint* reference, const KeyPoint* target, Part part,
                                             const Cells& cells, int factor) {
    const Moments m = moments_of(reference, target, part);
    if (m.count < 3) return text(m.count, " key points visible in both frames, 3 needed");
    const long double half = (m.pxx + m.pyy) / 2, gap = std::hypot((m.pxx - m.pyy) / 2, m.pxy);
    const auto along = std::sqrt(half + gap), across = std::sqrt(std::max(half - gap, 0.0L));
    if (along < 1e-6L) return std::string("all key points of the reference coincide");
    Motion motion;
    motion.similarity = across < flat * along;
    if (!motion.similarity) {
        motion.matrix = fit_affine(m);
        motion.similarity = !is_plausible(area(motion.matrix));
    }
    if (motion.similarity) {
        motion.matrix = fit_similarity(m);
        if (const double change = area(motion.matrix); !is_plausible(change)) {
            std::array<char, 96> line{};
            std::snprintf(line.data(), line.size(), "the region changes its area %.2f-fold, beyond %g..%g", change,
                          least_area, greatest_area);
            return std::string(line.data());
        }
    }
    if (!find_box(target, part, cells, factor, motion)) return std::string("the region lies outside the frame");
    return motion;
}

void warp_region(float* out, const float* source, const Cells& cells, const Motion& motion, int factor, Warp warp) {
    const Origin origin(motion.matrix, factor);
    const std::size_t plane = std::size_t(cells.high) * std::size_t(cells.wide);
    for (int v = motion.top; v < motion.bottom; ++v)
        for (int u = motion.left; u < motion.right; ++u) {
            const auto [x, y] = origin.of(u, v);
            if (x < -0.5 || y < -0.5 || x >= cells.wide - 0.5 || y >= cells.high - 0.5) continue;
            const Sample sample = sample_at(x, y, cells, warp);
            float* to = out + std::size_t(v) * std::size_t(cells.wide) + std::size_t(u);
            for (int c = 0; c < cells.channels; ++c, to += plane) {
                const float* from = source + std::size_t(c) * plane;
                if (warp == Warp::nearest) {
                    *to = from[sample.place[0]];
                    continue;
                }
                double total = 0;
                for (std::size_t i = 0; i < 4; ++i) total += sample.weight[i] * double(from[sample.place[i]]);
                *to = static_cast<float>(total / sample.norm);
            }
        }
}

void keep_mean(float* out, const float* before, const Cells& cells) {
    const std::size_t plane = std::size_t(cells.high) * std::size_t(cells.wide);
    for (int c = 0; c < cells.channels; ++c, out += plane, before += plane) {
        const double was = std::accumulate(before, before + plane, 0.0) / double(plane);
        const double is = std::accumulate(out, out + plane, 0.0) / double(plane);
        const auto shift = static_cast<float>(was - is);
        std::for_each(out, out + plane, [shift](float& value) { value += shift; });
    }
}

}  // namespace posecrafter
