#include "openpose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "files.hpp"

namespace posecrafter {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

struct Point {
    double x = 0, y = 0, score = 0;
};
using Points = std::array<Point, key_points>;

// One frame as read: points in the file's units, its name for errors, what it says about scale.
struct Frame {
    std::string name;
    Points points{};
    std::optional<Canvas> canvas;
    std::string units;
};

struct Array {
    const char* name;
    Part where;
    std::array<std::size_t, 2> counts;
};
constexpr std::array<Array, 4> arrays{{{"pose_keypoints_2d", body, {18, 25}},
                                       {"hand_left_keypoints_2d", left_hand, {21, 21}},
                                       {"hand_right_keypoints_2d", right_hand, {21, 21}},
                                       {"face_keypoints_2d", face, {68, 70}}}};
// Coordinates in 0..1 may leave the canvas a little; a person within two pixels of the corner cannot be meant.
constexpr double largest_fraction = 2.0;
// That many points of somebody within two pixels of the corner are no accident.
constexpr int few = 3;
constexpr int largest_side = 16384;

[[noreturn]] void refuse(const std::string& message) {
    throw Error(Kind::pose, "poses-json", message);
}

const Json* member(const Json& object, const char* name) {
    const auto found = object.find(name);
    return found == object.end() || found->is_null() ? nullptr : &*found;
}

void read_part(const std::string& name, const Array& part, const Json& values, Points& points) {
    const std::string label = name + ": " + part.name;
    const bool flat =
        values.is_array() && std::all_of(values.begin(), values.end(), [](const Json& v) { return v.is_number(); });
    if (!flat) refuse(label + " is not a flat list of numbers");
    const std::size_t count = values.size() / 3;
    if (values.size() % 3 != 0 || (count != part.counts[0] && count != part.counts[1]))
        refuse(text(label, " has ", values.size(), " numbers; it must have ", 3 * part.counts[0], " or ",
                    3 * part.counts[1]));
    for (std::size_t i = 0; i < values.size(); ++i)
        if (!(std::abs(values[i].get<double>()) <= double(std::numeric_limits<float>::max())))
            refuse(text(label, ": number ", i, " (point ", i / 3,
                        ") is not a finite float32; write 0, 0, 0 for an unknown point"));
    std::size_t to = static_cast<std::size_t>(part.where.first);
    for (std::size_t i = 0; i < count; ++i) {
        // BODY_25 puts the middle of the hips at 8 and appends six foot points.
        if (count == 25 && (i == 8 || i > 18)) continue;
        points[to++] = {values[3 * i].get<double>(), values[3 * i + 1].get<double>(), values[3 * i + 2].get<double>()};
    }
}

Points read_person(const std::string& name, const Json& person) {
    Points points{};
    for (const Array& part : arrays) {
        const Json* values = member(person, part.name);
        if (values && !(values->is_array() && values->empty())) read_part(name, part, *values, points);
    }
    for (Point& point : points)
        if (point.score <= 0) point = {};
    return points;
}

// The area of the box around the points that are present, in the file's units squared; -1 without one.
double area(const Points& points) {
    double left = 0, right = 0, top = 0, bottom = 0;
    bool any = false;
    for (const Point& p : points) {
        if (p.score <= 0) continue;
        left = any ? std::min(left, p.x) : p.x;
        right = any ? std::max(right, p.x) : p.x;
        top = any ? std::min(top, p.y) : p.y;
        bottom = any ? std::max(bottom, p.y) : p.y;
        any = true;
    }
    return any ? (right - left) * (bottom - top) : -1.0;
}

bool is_side(const Json* value) {
    if (!value || !value->is_number()) return false;
    const double side = value->get<double>();
    return side >= 1 && side <= largest_side && side == std::trunc(side);
}

std::optional<Canvas> read_canvas(const std::string& name, const Json& item) {
    const Json *width = member(item, "canvas_width"), *height = member(item, "canvas_height");
    if (!width && !height) return std::nullopt;
    if (!is_side(width) || !is_side(height))
        refuse(text(name, ": both sides of the canvas must be whole pixels from 1 to ", largest_side));
    return Canvas{static_cast<int>(width->get<double>()), static_cast<int>(height->get<double>())};
}

Frame read_frame(const std::string& name, const Json& item) {
    if (!item.is_object() || !item.contains("people"))
        refuse(name + " has no 'people'; each frame is an object with a list of people");
    Frame frame;
    frame.name = name;
    const Json& people = item["people"];
    const auto is_object = [](const Json& person) { return person.is_object(); };
    if (!people.is_null() && !(people.is_array() && std::all_of(people.begin(), people.end(), is_object)))
        refuse(name + ": 'people' is not a list of objects");
    if (const Json* units = member(item, "keypoint_units")) {
        if (*units != "pixel" && *units != "fraction") refuse(name + ": keypoint_units is one of pixel, fraction");
        frame.units = units->get<std::string>();
    }
    double largest = -2;
    for (const Json& person : people) {
        const Points points = read_person(name, person);
        if (const double size = area(points); size > largest) {
            frame.points = points;
            largest = size;
        }
    }
    frame.canvas = read_canvas(name, item);
    return frame;
}

void append_frames(std::string_view content, const std::string& name, std::vector<Frame>& frames) {
    Json parsed;
    try {
        if (content.substr(0, 3) == "\xEF\xBB\xBF") throw std::invalid_argument("it starts with a byte order mark");
        parsed = Json::parse(content);
    } catch (const std::exception& error) {
        refuse(text(name, ": not valid JSON (", error.what(), ")"));
    }
    if (parsed.is_object()) {
        frames.push_back(read_frame(name, parsed));
        return;
    }
    if (!parsed.is_array() || parsed.empty())
        refuse(name + " holds no frame; OpenPose JSON is a frame object or a list of them");
    for (std::size_t i = 0; i < parsed.size(); ++i) frames.push_back(read_frame(text(name, ", frame ", i), parsed[i]));
}

// By its first character.
bool is_list(std::string_view content) {
    const auto first = content.find_first_not_of(" \t\r\n");
    return first != content.npos && content[first] == '[';
}

Canvas one_canvas(const std::string& name, const std::vector<Frame>& frames, std::optional<Canvas> given) {
    for (const Frame& frame : frames) {
        if (!frame.canvas) continue;
        if (!given) given = frame.canvas;
        if (frame.canvas->width != given->width || frame.canvas->height != given->height)
            refuse(text(frame.name, " has a canvas of ", frame.canvas->width, "x", frame.canvas->height,
                        " but another has ", given->width, "x", given->height, "; all frames must share one canvas"));
    }
    if (!given)
        refuse(
            name +
            " names no canvas, so the scale of its poses is unknown; add canvas_width and canvas_height to its frames");
    return *given;
}

// Whether coordinates are fractions of the canvas: as the frames say, else by their size.
bool in_fractions(const std::string& name, const std::vector<Frame>& frames) {
    const Frame *said_fraction = nullptr, *said_pixel = nullptr, *small = nullptr, *large = nullptr;
    const auto first = [](const Frame*& found, const Frame& frame) {
        if (!found) found = &frame;
    };
    for (const Frame& frame : frames) {
        if (!frame.units.empty()) {
            first(frame.units == "fraction" ? said_fraction : said_pixel, frame);
            continue;
        }
        double farthest = 0;
        int seen = 0;
        for (const Point& p : frame.points) {
            farthest = std::max({farthest, std::abs(p.x), std::abs(p.y)});
            seen += p.score > 0;
        }
        if (farthest > largest_fraction)
            first(large, frame);
        else if (seen >= few)
            first(small, frame);
    }
    if (said_fraction && said_pixel) refuse(name + ": keypoint_units differ between frames (fraction, pixel)");
    const Frame *fraction = said_fraction ? said_fraction : small, *pixel = said_pixel ? said_pixel : large;
    if ((small && pixel) || (large && fraction))
        refuse(text(fraction->name, " is in fractions of the canvas and ", pixel->name,
                    " in pixels, as their coordinates say; bring them to one scale, or write in every frame "
                    "\"keypoint_units\": \"pixel\" or \"fraction\""));
    return fraction || !pixel;
}

// Settle the canvas and the units of the whole file, then scale to pixels.
Track make_track(const std::string& name, const std::vector<Frame>& frames, std::optional<Canvas> given) {
    const Canvas canvas = one_canvas(name, frames, given);
    const bool fractions = in_fractions(name, frames);
    const double scale_x = fractions ? canvas.width : 1, scale_y = fractions ? canvas.height : 1;
    std::vector<KeyPoint> points;
    points.reserve(frames.size() * key_points);
    for (const Frame& frame : frames)
        for (const Point& p : frame.points)
            points.push_back(
                {static_cast<float>(p.x * scale_x), static_cast<float>(p.y * scale_y), static_cast<float>(p.score)});
    return {std::move(points), canvas.width, canvas.height};
}

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// Natural order of names: runs of digits by value and after other text.
bool comes_before(const fs::path& left, const fs::path& right) {
    const auto pieces = [](const std::string& name) {
        std::vector<std::pair<std::string, std::string>> out(1);  // other text, then the digits behind it
        for (const char c : name) {
            if (is_digit(c)) {
                out.back().second += c;
            } else {
                if (!out.back().second.empty()) out.emplace_back();
                out.back().first += c;
            }
        }
        for (auto& [_, digits] : out) {
            digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
            digits.insert(0, text(1000 + digits.size()));  // shorter numbers first
        }
        return out;
    };
    return pieces(left.filename().string()) < pieces(right.filename().string());
}

}  // namespace

Track parse_poses(std::string_view content, const std::string& name, std::optional<Canvas> canvas) {
    std::vector<Frame> frames;
    append_frames(content, name, frames);
    return make_track(name, frames, canvas);
}

Track read_poses(const fs::path& path, std::optional<Canvas> canvas) {
    std::vector<fs::path> files;
    std::error_code ignored;
    const bool folder = fs::is_directory(path, ignored);
    if (folder) {
        for (const auto& item : fs::directory_iterator(path))
            if (item.path().extension() == ".json" && item.path().filename().string()[0] != '.')
                files.push_back(item.path());
        std::sort(files.begin(), files.end(), comes_before);
    } else if (fs::is_regular_file(path, ignored)) {
        files.push_back(path);
    }
    if (files.empty())
        throw Error(Kind::pose, "poses-missing",
                    folder ? path.string() + " holds no .json file; name a folder of OpenPose frames or one file"
                           : "there is no pose file " + path.string() + "; make one with: posecrafter poses extract");
    std::vector<Frame> frames;
    const fs::path *list = nullptr, *single = nullptr;
    for (const fs::path& file : files) {
        const auto content = read_file(file);
        if (!content) refuse(file.string() + " cannot be read");
        (is_list(*content) ? list : single) = &file;
        if (list && single)
            refuse(text(path.string(), " holds files of one frame (", single->filename().string(),
                        ") and lists of frames (", list->filename().string(),
                        "); put them into folders of their own, or name one file"));
        append_frames(*content, file.string(), frames);
    }
    return make_track(path.string(), frames, canvas);
}

}  // namespace posecrafter
