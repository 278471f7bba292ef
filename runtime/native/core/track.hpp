// A track of key points: the only form in which poses travel. K = 130: 18 body points, 21 of the person's left hand,
// 21 of the right hand, 68 face points, two pupils.
#pragma once

#include <cstddef>
#include <vector>

namespace posecrafter {

inline constexpr int key_points = 130;
inline constexpr float visible_score = 0.3F;

struct Part {
    int first, last;  // last exclusive
};
inline constexpr Part body{0, 18}, left_hand{18, 39}, right_hand{39, 60}, face{60, 130};

struct KeyPoint {
    float x = 0, y = 0, score = 0;
    bool visible() const { return score >= visible_score; }
};

// The largest centred crop of a source that has the aspect of a target size, then a scale.
struct Framing {
    int left = 0, top = 0;
    double scale_x = 1, scale_y = 1;

    static Framing center(int source_width, int source_height, int width, int height);
};

class Track {
  public:
    // Takes F * 130 key points in pixels of the canvas. Absent points (score 0 or less) are moved to 0.
    // Throws Error "poses-shape" (sizes), "poses-not-finite".
    Track(std::vector<KeyPoint> points, int width, int height);

    int frames() const { return static_cast<int>(points_.size()) / key_points; }
    int width() const { return width_; }
    int height() const { return height_; }
    const KeyPoint* frame(int index) const { return points_.data() + std::size_t(index) * key_points; }
    bool shows_somebody(int index) const;
    // Whether any frame has a visible one of these key points.
    bool shows(Part part) const;

    // Frames first .. last-1.
    Track slice(int first, int last) const;
    // The same poses on a canvas of another size, cut as frames are.
    Track framed(int width, int height) const;
    // This track, then another one on the same canvas.
    Track followed_by(const Track& other) const;

  private:
    std::vector<KeyPoint> points_;
    int width_, height_;
};

}  // namespace posecrafter
