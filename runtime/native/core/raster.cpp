#include "raster.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace posecrafter {
namespace {

constexpr int fraction = 16;  // fractional bits of fixed-point coordinates
constexpr std::int64_t one = 1 << fraction, half = one / 2;

void put(const Canvas8& canvas, std::int64_t x, std::int64_t y, Colour colour) {
    if (x >= 0 && x < canvas.width && y >= 0 && y < canvas.height) std::copy_n(colour.data(), 3, canvas.at(x, y));
}

void row(const Canvas8& canvas, std::int64_t y, std::int64_t from, std::int64_t to, Colour colour) {
    if (y < 0 || y >= canvas.height) return;
    from = std::max<std::int64_t>(from, 0);
    to = std::min<std::int64_t>(to, canvas.width - 1);
    for (std::int64_t x = from; x <= to; ++x) std::copy_n(colour.data(), 3, canvas.at(x, y));
}

// Cut a segment to 0..width-1, 0..height-1 (Cohen and Sutherland); false where nothing is left of it.
bool clip(std::int64_t width, std::int64_t height, Pixel& a, Pixel& b) {
    const std::int64_t right = width - 1, bottom = height - 1;
    const auto side = [&](const Pixel& p) { return (p.x < 0 ? 1 : 0) | (p.x > right ? 2 : 0); };
    const auto level = [&](const Pixel& p) { return (p.y < 0 ? 4 : 0) | (p.y > bottom ? 8 : 0); };
    const auto share = [](std::int64_t part, std::int64_t other, std::int64_t whole) {
        return static_cast<std::int64_t>(double(part) * double(other) / double(whole));
    };
    int code_a = side(a) | level(a), code_b = side(b) | level(b);
    const auto to_level = [&](Pixel& p, int& code) {
        if (!(code & 12)) return;
        const std::int64_t y = code < 8 ? 0 : bottom;
        p.x += share(y - p.y, b.x - a.x, b.y - a.y);
        p.y = y;
        code = side(p);
    };
    const auto to_side = [&](Pixel& p, int& code) {
        if (!code) return;
        const std::int64_t x = code == 1 ? 0 : right;
        p.y += share(x - p.x, b.y - a.y, b.x - a.x);
        p.x = x;
        code = 0;
    };
    if (!(code_a & code_b) && (code_a | code_b)) {
        to_level(a, code_a);
        to_level(b, code_b);
        if (!(code_a & code_b) && (code_a | code_b)) {
            to_side(a, code_a);
            to_side(b, code_b);
        }
    }
    return !(code_a | code_b);
}

// Between whole pixels, one pixel wide (Bresenham), from left to right.
void thin_line(const Canvas8& canvas, Pixel a, Pixel b, Colour colour) {
    if (!clip(canvas.width, canvas.height, a, b)) return;
    if (b.x < a.x) std::swap(a, b);
    const std::int64_t wide = b.x - a.x, high = std::abs(b.y - a.y), down = b.y < a.y ? -1 : 1;
    const bool steep = high > wide;
    const std::int64_t major = steep ? high : wide, minor = steep ? wide : high;
    std::int64_t rest = major - 2 * minor;
    for (std::int64_t i = 0; i <= major; ++i) {
        put(canvas, a.x, a.y, colour);
        const bool both = rest < 0;
        rest += both ? 2 * major - 2 * minor : -2 * minor;
        if (both || !steep) a.x += 1;
        if (both || steep) a.y += down;
    }
}

// Between fixed-point places, one pixel wide.
void fixed_line(const Canvas8& canvas, Pixel a, Pixel b, Colour colour) {
    if (!clip(canvas.width * one, canvas.height * one, a, b)) return;
    const bool flat = std::abs(b.x - a.x) > std::abs(b.y - a.y);
    if (flat ? b.x < a.x : b.y < a.y) std::swap(a, b);
    put(canvas, (b.x + half) >> fraction, (b.y + half) >> fraction, colour);
    const std::int64_t along = flat ? b.x - a.x : b.y - a.y, across = flat ? b.y - a.y : b.x - a.x;
    const std::int64_t slope = across * one / (along | 1);
    std::int64_t place = ((flat ? a.x : a.y) + half) >> fraction, other = (flat ? a.y : a.x) + half;
    for (std::int64_t left = along >> fraction; left >= 0; --left, ++place, other += slope)
        flat ? put(canvas, place, other >> fraction, colour) : put(canvas, other >> fraction, place, colour);
}

// One side of a convex polygon, from its top to its bottom: x at the current row, in fixed point.
struct Side {
    std::size_t corner;     // where the current edge starts
    std::size_t direction;  // to the next corner, modulo their number
    std::int64_t x = -one, slope = 0, until = 0;
};

// Rows of a convex polygon whose corners are fixed-point in x and, divided by 2^shift, whole in y.
void fill_rows(const Canvas8& canvas, const std::vector<Pixel>& corners, int shift, Colour colour) {
    const std::size_t count = corners.size();
    const std::int64_t rounding = (std::int64_t(1) << shift) / 2;
    const auto y_of = [&](std::size_t i) { return (corners[i].y + rounding) >> shift; };
    const auto x_of = [&](std::size_t i) { return corners[i].x << (fraction - shift); };
    const auto lower = [](const Pixel& a, const Pixel& b) { return a.y < b.y; };
    const auto [top, bottom] = std::minmax_element(corners.begin(), corners.end(), lower);
    const std::size_t first = static_cast<std::size_t>(top - corners.begin());
    const std::int64_t from = (top->y + rounding) >> shift;
    const std::int64_t to = std::min<std::int64_t>((bottom->y + rounding) >> shift, canvas.height - 1);
    Side sides[2] = {{first, 1, -one, 0, from}, {first, count - 1, -one, 0, from}};
    std::size_t edges = count;  // every edge is walked once, by one of the sides
    for (std::int64_t y = from; y <= to; ++y) {
        for (Side& side : sides) {
            if (y < side.until) continue;
            std::size_t start = side.corner, end = (start + side.direction) % count;
            for (; edges > 0; start = end, end = (end + side.direction) % count) {
                --edges;
                if (y_of(end) <= y) continue;
                const std::int64_t rows = y_of(end) - y;
                side = {end, side.direction, x_of(start), ((x_of(end) - x_of(start)) * 2 + rows) / (2 * rows),
                        y_of(end)};
                break;
            }
        }
        const auto [left, right] = std::minmax(sides[0].x, sides[1].x);
        row(canvas, y, (left + half) >> fraction, (right + half) >> fraction, colour);
        for (Side& side : sides) side.x += side.slope;
    }
}

bool touches(const Canvas8& canvas, const std::vector<Pixel>& corners, int shift) {
    const std::int64_t rounding = (std::int64_t(1) << shift) / 2;
    std::int64_t left = corners[0].x, right = left, top = corners[0].y, bottom = top;
    for (const Pixel& p : corners) {
        left = std::min(left, p.x), right = std::max(right, p.x);
        top = std::min(top, p.y), bottom = std::max(bottom, p.y);
    }
    const auto whole = [&](std::int64_t v) { return (v + rounding) >> shift; };
    return whole(right) >= 0 && whole(bottom) >= 0 && whole(left) < canvas.width && whole(top) < canvas.height;
}

// sin of whole degrees as OpenCV's table has it: seven decimals, single precision.
double table_sine(int degrees) {
    const double exact = std::sin(double(degrees) * std::acos(-1.0) / 180);
    return static_cast<float>(std::round(exact * 1e7) / 1e7);
}

}  // namespace

void draw_disc(const Canvas8& canvas, Pixel centre, int radius, Colour colour) {
    int wide = radius, high = 0, rest = 0, grow = 1, shrink = 2 * radius - 1;
    while (wide >= high) {
        for (const int sign : {-1, 1}) {
            row(canvas, centre.y + sign * high, centre.x - wide, centre.x + wide, colour);
            row(canvas, centre.y + sign * wide, centre.x - high, centre.x + high, colour);
        }
        ++high;
        rest += grow;
        grow += 2;
        if (rest > 0) {
            rest -= shrink;
            --wide;
            shrink -= 2;
        }
    }
}

void draw_line(const Canvas8& canvas, Pixel from, Pixel to, int width, Colour colour) {
    if (width <= 1) {
        thin_line(canvas, from, to, colour);
        return;
    }
    // Cut to the canvas and `width` pixels around it, at whole pixels, as cv2 5 does.
    const Pixel margin{width, width};
    from = {from.x + margin.x, from.y + margin.y}, to = {to.x + margin.x, to.y + margin.y};
    if (!clip(canvas.width + 2 * width, canvas.height + 2 * width, from, to)) return;
    from = {from.x - margin.x, from.y - margin.y}, to = {to.x - margin.x, to.y - margin.y};
    const double x = double(from.x - to.x), y = double(to.y - from.y), length = std::sqrt(x * x + y * y);
    if (length > 0) {
        const double reach = (double(width) * double(half) + (width & 1) * double(half)) / length;
        const Pixel side{std::llrint(y * reach), std::llrint(x * reach)};
        const Pixel a{from.x * one, from.y * one}, b{to.x * one, to.y * one};
        const std::vector<Pixel> corners = {{a.x + side.x, a.y + side.y},
                                            {a.x - side.x, a.y - side.y},
                                            {b.x - side.x, b.y - side.y},
                                            {b.x + side.x, b.y + side.y}};
        for (std::size_t i = 0; i < 4; ++i) fixed_line(canvas, corners[(i + 3) % 4], corners[i], colour);
        if (touches(canvas, corners, fraction)) fill_rows(canvas, corners, fraction, colour);
    }
    const int radius = static_cast<int>((width * half + half) >> fraction);
    draw_disc(canvas, from, radius, colour);
    draw_disc(canvas, to, radius, colour);
}

std::vector<Pixel> ellipse_outline(Pixel centre, std::array<int, 2> axes, int degrees) {
    const int turn = (degrees % 360 + 360) % 360;
    const double sine = table_sine(turn), cosine = table_sine(450 - turn);
    std::vector<Pixel> corners;
    for (int at = 0; at <= 360; ++at) {
        const double x = axes[0] * table_sine(450 - at), y = axes[1] * table_sine(at);
        const Pixel corner{std::llrint(double(centre.x) + x * cosine - y * sine),
                           std::llrint(double(centre.y) + x * sine + y * cosine)};
        if (corners.empty() || corner != corners.back()) corners.push_back(corner);
    }
    if (corners.size() == 1) corners.assign(2, centre);
    return corners;
}

void fill_convex(const Canvas8& canvas, const std::vector<Pixel>& corners, Colour colour) {
    for (std::size_t i = 0; i < corners.size(); ++i)
        thin_line(canvas, corners[(i + corners.size() - 1) % corners.size()], corners[i], colour);
    if (corners.size() >= 3 && touches(canvas, corners, 0)) fill_rows(canvas, corners, 0, colour);
}

}  // namespace posecrafter
