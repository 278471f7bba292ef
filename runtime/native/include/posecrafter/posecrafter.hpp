// PoseCrafter for C++: posecrafter.h with handles that free themselves and errors that are exceptions.
//
//     posecrafter::Session session("bundle");
//     posecrafter::Video video = session.render(posecrafter::Poses::read("target.json"));
//
// Header only; the same rules of threads and ownership as in posecrafter.h, which documents every field.
#pragma once

#include <posecrafter/posecrafter.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace posecrafter {

// What a failed call leaves: its status, the stable code, the message as what().
class Failed : public std::runtime_error {
  public:
    Failed(pc_status status, std::string code, const std::string& message)
        : std::runtime_error(message), status_(status), code_(std::move(code)) {}
    pc_status status() const noexcept { return status_; }
    const std::string& code() const noexcept { return code_; }

  private:
    pc_status status_;
    std::string code_;
};

inline void check(pc_status status) {
    if (status != PC_OK) throw Failed(status, pc_last_error_code(), pc_last_error_message());
}

// Target poses, read from OpenPose JSON.
class Poses {
  public:
    // width, height: the canvas of files that name none.
    static Poses read(const std::string& path, std::int32_t width = 0, std::int32_t height = 0) {
        pc_poses* raw = nullptr;
        check(pc_poses_read(path.c_str(), width, height, &raw));
        return Poses(raw);
    }
    static Poses parse(std::string_view json, std::int32_t width = 0, std::int32_t height = 0) {
        pc_poses* raw = nullptr;
        check(pc_poses_parse(json.data(), json.size(), width, height, &raw));
        return Poses(raw);
    }
    // Valid as long as the poses are.
    pc_key_points view() const {
        pc_key_points points{};
        check(pc_poses_view(handle_.get(), &points));
        return points;
    }

  private:
    struct Free {
        void operator()(pc_poses* poses) const { pc_poses_free(&poses); }
    };
    explicit Poses(pc_poses* raw) : handle_(raw) {}
    std::unique_ptr<pc_poses, Free> handle_;
};

// A request with its defaults.
struct Request : pc_request {
    Request() { pc_request_init(this); }
    explicit Request(const Poses& target) : Request() { poses = target.view(); }
};

struct Options : pc_options {
    Options() { pc_options_init(this); }
};

// What a request will do.
class Plan {
  public:
    // Its text is valid as long as the plan is.
    pc_plan_summary view() const {
        pc_plan_summary summary{};
        check(pc_planned_view(handle_.get(), &summary));
        return summary;
    }

  private:
    friend class Session;
    struct Free {
        void operator()(pc_planned* plan) const { pc_planned_free(&plan); }
    };
    explicit Plan(pc_planned* raw) : handle_(raw) {}
    std::unique_ptr<pc_planned, Free> handle_;
};

// Frames [frames, height, width, 3] RGB.
struct Video {
    std::int32_t frames = 0, width = 0, height = 0;
    std::vector<std::uint8_t> data;
    const std::uint8_t* frame(std::int32_t index) const { return data.data() + std::size_t(index) * frame_bytes(); }
    std::size_t frame_bytes() const { return std::size_t(width) * std::size_t(height) * 3; }
};

// Told of every unit of work, and given frames first .. first+count-1, uint8 RGB, valid during the call. False stops
// the work, which then has Failed "cancelled".
using Progress = std::function<bool(std::string_view stage, std::int32_t done, std::int32_t total)>;
using Preview = std::function<bool(std::int32_t first, std::int32_t count, const std::uint8_t* frames)>;

// An open bundle on an engine; closed when it goes out of scope, after every call on it has returned.
class Session {
  public:
    explicit Session(const std::string& bundle, const Options& options = {}) {
        pc_session* raw = nullptr;
        check(pc_open(bundle.c_str(), &options, &raw));
        handle_.reset(raw);
    }

    pc_session* get() const { return handle_.get(); }

    // Its texts are valid as long as the session is.
    pc_description description() const {
        pc_description out;
        pc_description_init(&out);
        check(pc_describe(get(), &out));
        return out;
    }
    // A name in a shared bundle's persons/, or a pack's folder; without, the bundle's own person.
    void load_person(const std::string& person) { check(pc_load_person(get(), person.c_str())); }
    void load_person() { check(pc_load_person(get(), nullptr)); }
    void unload_person(const std::string& person) { check(pc_unload_person(get(), person.c_str())); }

    Plan plan(const Request& request) const {
        pc_planned* raw = nullptr;
        check(pc_plan(get(), &request, &raw));
        return Plan(raw);
    }

    Video render(const Request& request) {
        return picture(request, [&](Video& video) {
            pc_output output;
            pc_output_init(&output);
            output.frames = video.data.data();
            output.frames_bytes = video.data.size();
            check(pc_render(get(), &request, &output));
        });
    }
    Video render(const Poses& poses) { return render(Request(poses)); }

    // The same, watched: these take the place of the request's callbacks. What they throw ends the work and is thrown
    // from here.
    Video render(Request request, const Progress& progress, const Preview& preview = {}) {
        Watched watched(request, progress, preview);
        return watched.rethrow([&] { return render(request); });
    }
    // Frames go to the preview alone, as they are decoded; nowhere is the whole video.
    void stream(Request request, const Preview& preview, const Progress& progress = {}) {
        Watched watched(request, progress, preview);
        watched.rethrow([&] { check(pc_render(get(), &request, nullptr)); });
    }

    // The control images that the network sees.
    Video draw(const Request& request) {
        return picture(request,
                       [&](Video& video) { check(pc_draw(get(), &request, video.data.data(), video.data.size())); });
    }

  private:
    struct Close {
        void operator()(pc_session* session) const { pc_close(&session); }
    };

    // A request's callbacks while it is rendered, and what they threw.
    class Watched {
      public:
        Watched(Request& request, const Progress& progress, const Preview& preview)
            : progress_(progress), preview_(preview) {
            request.user = this;
            if (progress)
                request.progress = [](void* user, const char* stage, std::int32_t done, std::int32_t total) {
                    auto& own = *static_cast<Watched*>(user);
                    return own.stops([&] { return own.progress_(stage, done, total); });
                };
            if (preview)
                request.preview = [](void* user, std::int32_t first, std::int32_t count, const std::uint8_t* frames) {
                    auto& own = *static_cast<Watched*>(user);
                    return own.stops([&] { return own.preview_(first, count, frames); });
                };
        }
        Watched(const Watched&) = delete;
        Watched& operator=(const Watched&) = delete;

        template <class Work>
        auto rethrow(Work work) -> decltype(work()) {
            try {
                return work();
            } catch (const Failed&) {
                if (thrown_) std::rethrow_exception(thrown_);
                throw;
            }
        }

      private:
        template <class Call>
        int stops(Call call) noexcept {
            try {
                return call() ? 0 : 1;
            } catch (...) {
                thrown_ = std::current_exception();
                return 1;
            }
        }

        const Progress& progress_;
        const Preview& preview_;
        std::exception_ptr thrown_;
    };

    template <class Fill>
    Video picture(const Request& request, Fill fill) const {
        const pc_description about = description();
        Video video{
            request.poses.frames > 0 ? request.poses.frames : request.image_frames, about.width, about.height, {}};
        video.data.resize(std::size_t(video.frames > 0 ? video.frames : 0) * video.frame_bytes());
        fill(video);
        return video;
    }

    std::unique_ptr<pc_session, Close> handle_;
};

}  // namespace posecrafter
