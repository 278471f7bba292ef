#include "draw.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "error.hpp"

namespace posecrafter {
namespace {

// Stroke sizes in pixels: half-width of a limb, width of a finger, radii of joints and of face points.
struct Pen {
    int limb, finger, joint, face;
};
constexpr Pen wide{4, 2, 4, 3}, narrow{1, 1, 1, 0};

constexpr int limbs[17][2] = {{1, 2},  {1, 5},   {2, 3},   {3, 4}, {5, 6},  {6, 7},   {1, 8},  {8, 9},  {9, 10},
                              {1, 11}, {11, 12}, {12, 13}, {1, 0}, {0, 14}, {14, 16}, {0, 15}, {15, 17}};
constexpr Colour colours[18] = {{255, 0, 0}, {255, 85, 0}, {255, 170, 0}, {255, 255, 0}, {170, 255, 0}, {85, 255, 0},
                                {0, 255, 0}, {0, 255, 85}, {0, 255, 170}, {0, 255, 255}, {0, 170, 255}, {0, 85, 255},
                                {0, 0, 255}, {85, 0, 255}, {170, 0, 255}, {255, 0, 255}, {255, 0, 170}, {255, 0, 85}};
constexpr Colour hand_colour{0, 0, 255}, face_colour{255, 255, 255};
// Farther points could overflow fixed-point arithmetic and cannot be meant.
constexpr float farthest = 16000;

bool is_drawn(const KeyPoint& p) {
    return p.visible() && std::abs(p.x) < farthest && std::abs(p.y) < farthest;
}

Pixel pixel(double x, double y) {
    return {static_cast<std::int64_t>(x), static_cast<std::int64_t>(y)};
}

void draw_point(const Canvas8& canvas, const KeyPoint& p, int radius, Colour colour) {
    if (is_drawn(p)) draw_disc(canvas, pixel(p.x, p.y), radius, colour);
}

// A filled ellipse; its centre, axes and angle are truncated to integers, as in training.
void draw_limb(const Canvas8& canvas, const KeyPoint& from, const KeyPoint& to, const Pen& pen, Colour colour) {
    if (!is_drawn(from) || !is_drawn(to)) return;
    const double along_x = double(from.x) - double(to.x), along_y = double(from.y) - double(to.y);
    const Pixel middle = pixel((double(from.x) + double(to.x)) / 2, (double(from.y) + double(to.y)) / 2);
    const int length = static_cast<int>(std::hypot(along_x, along_y) / 2);
    const int degrees = static_cast<int>(std::atan2(along_y, along_x) * (180.0 / std::acos(-1.0)));
    fill_convex(canvas, ellipse_outline(middle, {length, pen.limb}, degrees), colour);
}

// Opaque limbs, the canvas dimmed to 60 %, joints at full colour.
void draw_body(const Canvas8& canvas, const KeyPoint* points, const Pen& pen) {
    for (int i = 0; i < 17; ++i) draw_limb(canvas, points[limbs[i][0]], points[limbs[i][1]], pen, colours[i]);
    for (std::size_t i = 0; i < canvas.size(); ++i) canvas.data[i] = static_cast<std::uint8_t>(canvas.data[i] * 0.6);
    for (int i = 0; i < 18; ++i) draw_point(canvas, points[i], pen.joint, colours[i]);
}

// Joints at full colour, then every limb blended over what is there: 40 % canvas, 60 % limb.
void draw_body_v10(const Canvas8& canvas, const KeyPoint* points, const Pen& pen) {
    for (int i = 0; i < 18; ++i) draw_point(canvas, points[i], pen.joint, colours[i]);
    std::vector<std::uint8_t> copy(canvas.size());
    for (int i = 0; i < 17; ++i) {
        std::copy_n(canvas.data, canvas.size(), copy.data());
        draw_limb({copy.data(), canvas.width, canvas.height}, points[limbs[i][0]], points[limbs[i][1]], pen,
                  colours[i]);
        for (std::size_t j = 0; j < canvas.size(); ++j)
            canvas.data[j] = static_cast<std::uint8_t>(std::lrint(0.4 * canvas.data[j] + 0.6 * copy[j]));
    }
}

// The colour of finger edge 0..19: hue edge / 20 at full strength.
Colour finger_colour(int edge) {
    const double hue = edge / 20.0 * 6, part = hue - std::floor(hue);
    const auto up = static_cast<std::uint8_t>(std::lrint(255 * part));
    const auto down = static_cast<std::uint8_t>(std::lrint(255 * (1 - part)));
    const std::array<Colour, 6> sectors{
        {{255, up, 0}, {down, 255, 0}, {0, 255, up}, {0, down, 255}, {up, 0, 255}, {255, 0, down}}};
    return sectors[static_cast<std::size_t>(hue)];
}

void draw_hand(const Canvas8& canvas, const KeyPoint* points, const Pen& pen) {
    for (int edge = 0; edge < 20; ++edge) {
        const KeyPoint &from = points[edge % 4 == 0 ? 0 : edge], &to = points[edge + 1];
        if (is_drawn(from) && is_drawn(to))
            draw_line(canvas, pixel(from.x, from.y), pixel(to.x, to.y), pen.finger, finger_colour(edge));
    }
    for (int i = 0; i < 21; ++i) draw_point(canvas, points[i], pen.joint, hand_colour);
}

void draw_frame(const Canvas8& canvas, const KeyPoint* points, const std::string& style) {
    const Pen& pen = style == "v1.1-small" ? narrow : wide;
    if (style == "v1.0") {
        draw_body_v10(canvas, points, pen);
        return;
    }
    draw_body(canvas, points, pen);
    draw_hand(canvas, points + left_hand.first, pen);
    draw_hand(canvas, points + right_hand.first, pen);
    for (int i = face.first; i < face.last; ++i) draw_point(canvas, points[i], pen.face, face_colour);
}

}  // namespace

std::vector<std::uint8_t> draw_poses(const Track& track, const std::string& style) {
    if (style != "v1.1" && style != "v1.0" && style != "v1.1-small")
        throw Error(Kind::pose, "pose-style",
                    text("unknown pose style '", style, "'; choose one of v1.1, v1.0, v1.1-small"));
    const std::size_t size = std::size_t(track.width()) * std::size_t(track.height()) * 3;
    std::vector<std::uint8_t> images(size * std::size_t(track.frames()));
    for (int i = 0; i < track.frames(); ++i)
        draw_frame({images.data() + size * std::size_t(i), track.width(), track.height()}, track.frame(i), style);
    return images;
}

}  // namespace posecrafter
