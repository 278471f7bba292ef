#include "session.hpp"

#include <algorithm>
#include <cmath>

#include "draw.hpp"
#include "error.hpp"
#include "noise.hpp"

namespace posecrafter {
namespace {

constexpr std::size_t remembered = 8;

void tell(const Progress& progress, const char* stage, int done, int total) {
    if (progress && progress(stage, done, total))
        throw Error(Kind::request, "cancelled", text("stopped at ", stage, " ", done, " of ", total));
}

std::vector<float> repeat(const std::vector<float>& one, int times) {
    std::vector<float> out;
    out.reserve(one.size() * std::size_t(times));
    for (int i = 0; i < times; ++i) out.insert(out.end(), one.begin(), one.end());
    return out;
}

// y = a x + b eps, as the network returned it: x <- y + c (eps - before), and before <- eps.
void extrapolate(std::vector<float>& x, const std::vector<float>& y, std::vector<float>& before, const Step& step) {
    const auto a = static_cast<float>(step.a), b = static_cast<float>(step.b), c = static_cast<float>(step.c);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const float eps = (y[i] - a * x[i]) / b;
        x[i] = c == 0 ? y[i] : y[i] + c * (eps - before[i]);
        before[i] = eps;
    }
}

// y <- a x + b eps, eps on the line through those of two steps before it where there are two. In Python's order of
// sums.
void guess(const std::vector<float>& x, const std::vector<float>& last, const std::vector<float>& older,
           const Step& step, std::vector<float>& y) {
    const auto a = static_cast<float>(step.a), b = static_cast<float>(older.empty() ? step.b : 2 * step.b);
    const auto c = static_cast<float>(-step.b);
    for (std::size_t i = 0; i < x.size(); ++i)
        y[i] = older.empty() ? a * x[i] + b * last[i] : a * x[i] + c * older[i] + b * last[i];
}

}  // namespace

Session::Session(const std::filesystem::path& folder, const EngineOptions& options)
    : Session(Bundle::open(folder), options) {}

Session::Session(Bundle own, const EngineOptions& options) : engine_(options, own.folder, own.manifest) {
    Resident person{std::move(own), {}, {}};
    if (const Bundle& bundle = person.bundle; bundle.manifest.kind == "shared")
        person.weights = upload_weights(engine_, bundle.folder / "person" / weights_file, bundle);
    now_ = &people_.emplace(std::nullopt, std::move(person)).first->second;
}

void Session::load_person(const std::optional<std::string>& person) {
    auto found = people_.find(person);
    if (found == people_.end()) {
        const Bundle& own = people_.at(std::nullopt).bundle;
        if (own.manifest.kind != "shared")
            throw Error(Kind::bundle, "bundle-merged",
                        text(own.folder.string(), " holds one merged person and cannot load '", *person,
                             "'; export it with --shared"));
        const std::filesystem::path folder = find_pack(own.folder, *person);
        const Pack pack = Pack::read(folder);
        Resident loaded{read_person(own, pack, folder), {}, {}};
        loaded.weights = upload_weights(engine_, folder / weights_file, own, pack.low_rank);
        found = people_.emplace(person, std::move(loaded)).first;
    }
    now_ = &found->second;
}

void Session::unload_person(const std::string& person) {
    const auto found = people_.find(person);
    if (found == people_.end()) return;
    if (now_ == &found->second) now_ = &people_.at(std::nullopt);
    people_.erase(found);
}

void Session::render(const Request& request, const Output& output, const Progress& progress, const Preview& preview) {
    const Plan plan = this->plan(request);
    for (const Window& window : plan.windows) render_window(request, plan, window, output, progress, preview);
}

// One pass: the reference at index 0, as the key frame, and the window's targets behind it.
void Session::render_window(const Request& request, const Plan& plan, const Window& window, const Output& output,
                            const Progress& progress, const Preview& preview) {
    const int frames = window.frames() + 1;
    const Manifest& m = bundle().manifest;
    const Tensor features = encode_poses(draw(request, plan, window), frames);
    const std::vector<float> start = noise(request, plan, features, frames, progress);

    std::vector<float> x = start;
    const Cells cells{m.channels, bundle().cells_high(), bundle().cells_wide()};
    for (int i = 1; i < frames; ++i) {
        const std::size_t frame = std::size_t(i) * cells.size();
        for (const auto& [_, motion] : plan.motions[std::size_t(window.start + i - 1)])
            warp_region(x.data() + frame, start.data(), cells, motion, m.factor, plan.warp);
        if (plan.keep_mean) keep_mean(x.data() + frame, start.data() + frame, cells);
    }

    const float* prompt = request.prompt ? request.prompt : bundle().prompt.values.data();
    const float* negative = request.negative ? request.negative : bundle().empty.values.data();
    const std::size_t words = bundle().prompt.values.size();
    std::vector<float> text(prompt, prompt + words);
    if (plan.weights.size() == 2) text.insert(text.begin(), negative, negative + words);
    const auto prompts = static_cast<std::int64_t>(plan.weights.size());
    const auto scale = static_cast<float>(plan.control_scale);
    const Pass pass{engine_.upload({prompts, m.tokens, m.text_width}, text.data()),
                    engine_.upload({prompts}, plan.weights.data()), features, engine_.upload({}, &scale)};
    solve(x, frames, plan.sampling_steps, 1, pass, "sample", progress);

    const float* targets = x.data() + cells.size();
    if (output.latents)
        std::copy_n(targets, x.size() - cells.size(), output.latents + std::size_t(window.start) * cells.size());
    decode(targets, window, request.decode_chunk, output, progress, preview);
}

// The control images of a pass [F, H, W, 3]: the reference's, then the targets', drawn here or by the caller.
std::vector<std::uint8_t> Session::draw(const Request& request, const Plan& plan, const Window& window) const {
    const std::string& style = bundle().manifest.pose_style;
    if (!request.images)
        return draw_poses(plan.reference_pose.followed_by(plan.poses->slice(window.start, window.stop)), style);
    std::vector<std::uint8_t> maps = draw_poses(plan.reference_pose, style);
    const std::size_t size = maps.size();
    maps.insert(maps.end(), request.images + size * std::size_t(window.start),
                request.images + size * std::size_t(window.stop));
    return maps;
}

Tensor Session::encode_poses(const std::vector<std::uint8_t>& maps, int frames) {
    const auto plane = std::size_t(bundle().manifest.height) * std::size_t(bundle().manifest.width);
    std::vector<float> images(maps.size());
    for (std::size_t f = 0; f < std::size_t(frames); ++f)
        for (std::size_t c = 0; c < 3; ++c)
            for (std::size_t i = 0; i < plane; ++i)
                images[(f * 3 + c) * plane + i] = static_cast<float>(maps[(f * plane + i) * 3 + c]) / 255.0F;
    const Tensor input = engine_.upload({frames, 3, bundle().manifest.height, bundle().manifest.width}, images.data());
    return run("pose_encoder", {{"control_images", &input}}, "pose_features");
}

// Where sampling starts [F, L, h, w]: one frame inverted once, or every copy, or one draw of plain noise.
std::vector<float> Session::noise(const Request& request, const Plan& plan, const Tensor& features, int frames,
                                  const Progress& progress) {
    if (plan.inversion == Inversion::none) return repeat(gaussian_noise(request.seed, bundle().latent_size()), frames);
    const float* prompt = request.prompt ? request.prompt : bundle().prompt.values.data();
    if (plan.inversion == Inversion::target) return invert(plan, prompt, features, frames, progress);
    std::list<Inverted>& inverted = now_->inverted;
    const std::vector<float> words(prompt, prompt + bundle().prompt.values.size());
    const auto steps = static_cast<int>(plan.inversion_steps.size());
    const auto found = std::find_if(inverted.begin(), inverted.end(), [&](const Inverted& known) {
        return known.reference == plan.reference && known.steps == steps &&
               known.iterations == plan.inversion_iterations && known.control_scale == plan.control_scale &&
               known.prompt == words;
    });
    if (found != inverted.end()) return repeat(found->noise, frames);
    const Tensor alone = encode_poses(draw_poses(plan.reference_pose, bundle().manifest.pose_style), 1);
    inverted.push_back({plan.reference, steps, plan.inversion_iterations, plan.control_scale, words,
                        invert(plan, prompt, alone, 1, progress)});
    if (inverted.size() > remembered) inverted.pop_front();
    return repeat(inverted.back().noise, frames);
}

// DDIM-invert copies of the reference, conditional prompt only, no guidance.
std::vector<float> Session::invert(const Plan& plan, const float* prompt, const Tensor& features, int frames,
                                   const Progress& progress) {
    const float one = 1, scale = static_cast<float>(plan.control_scale);
    const Pass pass{engine_.upload({1, bundle().manifest.tokens, bundle().manifest.text_width}, prompt),
                    engine_.upload({1}, &one), features, engine_.upload({}, &scale)};
    const auto first = bundle().latents.values.begin() + std::ptrdiff_t(bundle().latent_size()) * plan.reference;
    std::vector<float> x = repeat({first, first + std::ptrdiff_t(bundle().latent_size())}, frames);
    solve(x, frames, plan.inversion_steps, plan.inversion_iterations, pass, "invert", progress);
    return x;
}

Tensor Session::denoise(const Tensor& x, const Step& step, const Pass& pass, const char* output) {
    const auto a = static_cast<float>(step.a), b = static_cast<float>(step.b);
    const Tensor timestep = engine_.upload(step.timestep), scaled = engine_.upload({}, &a),
                 added = engine_.upload({}, &b);
    return run("denoiser",
               {{"x", &x},
                {"timestep", &timestep},
                {"a", &scaled},
                {"b", &added},
                {"text", &pass.text},
                {"weight", &pass.weight},
                {"pose_features", &pass.pose_features},
                {"control_scale", &pass.control_scale}},
               output);
}

// The one loop: x <- a x + b eps(x, t), with eps = sum_b weight_b eps_b, in place. x: [F, L, h, w]. More than one
// iteration look for the fixed point y = a x + b eps(y, t) instead, from a first guess on the line through the noises
// of the last two steps. Steps with a c add c times what eps changed by.
void Session::solve(std::vector<float>& x, int frames, const std::vector<Step>& steps, int iterations, const Pass& pass,
                    const char* stage, const Progress& progress) {
    const int total = static_cast<int>(steps.size());
    const auto uploaded = [&](const std::vector<float>& values) {
        return engine_.upload({frames, bundle().manifest.channels, bundle().cells_high(), bundle().cells_wide()},
                              values.data());
    };
    Tensor state = uploaded(x);
    const bool multistep = std::any_of(steps.begin(), steps.end(), [](const Step& step) { return step.c != 0; });
    std::vector<float> next(iterations > 1 || multistep ? x.size() : 0), before(multistep ? x.size() : 0);
    std::vector<float> eps, last, older;  // of this step and the two before it
    tell(progress, stage, 0, total);
    for (int done = 1; const Step& step : steps) {
        if (iterations == 1 || last.empty()) {
            state = denoise(state, step, pass, "x_next");
        } else {
            guess(x, last, older, step, next);
            state = uploaded(next);
        }
        for (int i = 1; i < iterations; ++i) {
            eps.resize(x.size());
            engine_.download(denoise(state, step, pass, "eps"), eps.data(), eps.size());
            guess(x, eps, {}, step, next);
            state = uploaded(next);
        }
        if (iterations > 1) std::swap(older, last), std::swap(last, eps);
        if (multistep) {
            engine_.download(state, next.data(), next.size());
            extrapolate(x, next, before, step);
            if (step.c != 0) state = uploaded(x);
        } else {
            engine_.download(state, x.data(), x.size());
        }
        if (!std::all_of(x.begin(), x.end(), [](float value) { return std::isfinite(value); }))
            throw Error(Kind::engine, "nan-latents",
                        text("the latents are not finite after ", stage, " step ", done, " of ", total, " (timestep ",
                             step.timestep, "); export with --precision fp32, or lower the guidance"));
        tell(progress, stage, done++, total);
    }
}

void Session::decode(const float* latents, const Window& window, int chunk, const Output& output,
                     const Progress& progress, const Preview& preview) {
    const Manifest& m = bundle().manifest;
    const std::size_t picture = std::size_t(m.height) * std::size_t(m.width) * 3;
    const int total = window.frames();
    std::vector<float> colours;
    std::vector<std::uint8_t> pictures;
    tell(progress, "decode", 0, total);
    for (int start = 0; start < total; start += chunk) {
        const int count = std::min(chunk, total - start);
        const Tensor input = engine_.upload({count, m.channels, bundle().cells_high(), bundle().cells_wide()},
                                            latents + std::size_t(start) * bundle().latent_size());
        const Tensor frames = run("vae_decoder", {{"latents", &input}}, "frames");
        colours.resize(picture * std::size_t(count));
        engine_.download(frames, colours.data(), colours.size());
        if (!output.frames) pictures.resize(colours.size());
        std::uint8_t* to =
            output.frames ? output.frames + picture * std::size_t(window.start + start) : pictures.data();
        std::transform(colours.begin(), colours.end(), to, [](float value) {
            return static_cast<std::uint8_t>(std::lrint(std::clamp(value, 0.0F, 255.0F)));
        });
        if (preview && preview(window.start + start, count, to))
            throw Error(Kind::request, "cancelled", text("stopped after frame ", window.start + start + count - 1));
        tell(progress, "decode", start + count, total);
    }
}

}  // namespace posecrafter
