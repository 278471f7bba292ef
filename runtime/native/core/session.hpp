// A session: one open bundle on one engine. Start reading here; `render` is the whole product.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"
#include "person.hpp"
#include "plan.hpp"
#include "request.hpp"

namespace posecrafter {

// Called before the first and after every unit of work; true stops the work.
using Progress = std::function<bool(const char* stage, int done, int total)>;
// Called for frames as they are decoded: uint8 RGB [count, H, W, 3]; true stops the work.
using Preview = std::function<bool(int first, int count, const std::uint8_t* frames)>;

// Where a result goes. Each may be null: it is then not written.
struct Output {
    std::uint8_t* frames = nullptr;  // [M, H, W, 3] RGB
    float* latents = nullptr;        // [M, L, h, w], the clean latents
};

// Renders requests, one person at a time. Used from one thread at a time.
class Session {
  public:
    Session(const std::filesystem::path& folder, const EngineOptions& options);

    // Whom it renders now; it stays where it is until he is unloaded or the session ends.
    const Bundle& bundle() const { return now_->bundle; }
    const Engine& engine() const { return engine_; }

    // Render this person from now on: a name of the shared bundle's persons/, or a pack's folder; none for the bundle's
    // own. Who was loaded stays in the engine's memory, so coming back binds other tensors and nothing more. Throws
    // Error "bundle-merged" and what find_pack, Pack::read, read_person and upload_weights throw; the session is then
    // as it was.
    void load_person(const std::optional<std::string>& person);
    // Free somebody's memory; if he is the one rendered now, the bundle's own person is from then on.
    void unload_person(const std::string& person);

    Plan plan(const Request& request) const { return make_plan(request, bundle(), engine_); }
    // Throws Error "cancelled", "nan-latents", and what plans and engines throw.
    void render(const Request& request, const Output& output, const Progress& progress, const Preview& preview);

  private:
    Session(Bundle own, const EngineOptions& options);

    // The noise that one training frame comes from, and what it depends on.
    struct Inverted {
        int reference, steps, iterations;
        double control_scale;
        std::vector<float> prompt, noise;
    };
    // Somebody who was loaded.
    struct Resident {
        Bundle bundle;
        Bound weights;
        std::list<Inverted> inverted;
    };
    // What every step of a pass sees, in the engine's memory.
    struct Pass {
        Tensor text, weight, pose_features, control_scale;
    };

    void render_window(const Request& request, const Plan& plan, const Window& window, const Output& output,
                       const Progress& progress, const Preview& preview);
    Tensor encode_poses(const std::vector<std::uint8_t>& maps, int frames);
    std::vector<std::uint8_t> draw(const Request& request, const Plan& plan, const Window& window) const;
    std::vector<float> noise(const Request& request, const Plan& plan, const Tensor& features, int frames,
                             const Progress& progress);
    std::vector<float> invert(const Plan& plan, const float* prompt, const Tensor& features, int frames,
                              const Progress& progress);
    // One evaluation of the network: its output "x_next" or "eps".
    Tensor denoise(const Tensor& x, const Step& step, const Pass& pass, const char* output);
    void solve(std::vector<float>& x, int frames, const std::vector<Step>& steps, int iterations, const Pass& pass,
               const char* stage, const Progress& progress);
    void decode(const float* latents, const Window& window, int chunk, const Output& output, const Progress& progress,
                const Preview& preview);

    Tensor run(const std::string& graph, Inputs inputs, const char* output) {
        return engine_.run(graph, inputs, now_->weights, output);
    }

    Engine engine_;  // before whatever holds tensors, which must be gone when it closes
    std::map<std::optional<std::string>, Resident> people_;
    Resident* now_ = nullptr;
};

}  // namespace posecrafter
