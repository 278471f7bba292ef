// The four primitives that pose maps are drawn with, without anti-aliasing: the very pixels that OpenCV sets.
//
// OpenCV is not linked: its image module would be ten times this library's size for four small functions. They are
// written here in its fixed-point arithmetic (16 fractional bits), and a test compares them with cv2 pixel by pixel.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace posecrafter {

struct Pixel {
    std::int64_t x = 0, y = 0;
    bool operator==(const Pixel&) const = default;
};
using Colour = std::array<std::uint8_t, 3>;

// An RGB picture in memory that somebody else owns: height rows of width pixels of 3 bytes.
struct Canvas8 {
    std::uint8_t* data;
    int width, height;

    std::uint8_t* at(std::int64_t x, std::int64_t y) const { return data + 3 * (y * width + x); }
    std::size_t size() const { return std::size_t(width) * std::size_t(height) * 3; }
};

// A filled circle.
void draw_disc(const Canvas8& canvas, Pixel centre, int radius, Colour colour);
// A line of `width` pixels; a wide one has round ends.
void draw_line(const Canvas8& canvas, Pixel from, Pixel to, int width, Colour colour);
// The corners of an ellipse, one a degree, rounded to pixels. axes: half-axes in pixels; degrees: of the first axis.
std::vector<Pixel> ellipse_outline(Pixel centre, std::array<int, 2> axes, int degrees);
// A convex polygon with its outline.
void fill_convex(const Canvas8& canvas, const std::vector<Pixel>& corners, Colour colour);

}  // namespace posecrafter
