#include "track.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "error.hpp"

namespace posecrafter {

Framing Framing::center(int source_width, int source_height, int width, int height) {
    const std::int64_t sw = source_width, sh = source_height, w = width, h = height;
    std::int64_t crop_width = sw, crop_height = sh;
    // Integer arithmetic: the same box on every machine, rounded to the nearest pixel.
    if (sw * h >= sh * w)
        crop_width = std::max<std::int64_t>(1, (2 * sh * w + h) / (2 * h));
    else
        crop_height = std::max<std::int64_t>(1, (2 * sw * h + w) / (2 * w));
    // Rounded down as Python does: a crop one pixel wider than its source starts at -1.
    const auto half = [](std::int64_t gap) { return static_cast<int>(gap >> 1); };
    return {half(sw - crop_width), half(sh - crop_height), double(w) / double(crop_width),
            double(h) / double(crop_height)};
}

Track::Track(std::vector<KeyPoint> points, int width, int height)
    : points_(std::move(points)), width_(width), height_(height) {
    if (points_.size() % key_points != 0)
        throw Error(Kind::pose, "poses-shape", text(points_.size(), " key points are not a multiple of ", key_points));
    if (width < 1 || height < 1)
        throw Error(Kind::pose, "poses-shape",
                    text("canvas of ", width, "x", height, " pixels; both sides must be at least 1"));
    for (std::size_t i = 0; i < points_.size(); ++i) {
        KeyPoint& point = points_[i];
        if (!std::isfinite(point.x) || !std::isfinite(point.y) || !std::isfinite(point.score))
            throw Error(Kind::pose, "poses-not-finite",
                        text("frame ", i / key_points, ", key point ", i % key_points, " is [", point.x, ", ", point.y,
                             "] with score ", point.score, "; set the score of an unknown point to 0"));
        if (point.score <= 0) point = {};
    }
}

bool Track::shows_somebody(int index) const {
    return std::any_of(frame(index), frame(index) + key_points, [](const KeyPoint& p) { return p.visible(); });
}

bool Track::shows(Part part) const {
    for (int index = 0; index < frames(); ++index)
        if (std::any_of(frame(index) + part.first, frame(index) + part.last,
                        [](const KeyPoint& p) { return p.visible(); }))
            return true;
    return false;
}

Track Track::slice(int first, int last) const {
    return {std::vector<KeyPoint>(frame(first), frame(last)), width_, height_};
}

Track Track::framed(int width, int height) const {
    const Framing framing = Framing::center(width_, height_, width, height);
    std::vector<KeyPoint> points = points_;
    for (KeyPoint& point : points) {
        point.x = static_cast<float>((double(point.x) - framing.left) * framing.scale_x);
        point.y = static_cast<float>((double(point.y) - framing.top) * framing.scale_y);
    }
    return {std::move(points), width, height};
}

Track Track::followed_by(const Track& other) const {
    std::vector<KeyPoint> points = points_;
    points.insert(points.end(), other.points_.begin(), other.points_.end());
    return {std::move(points), width_, height_};
}

}  // namespace posecrafter
