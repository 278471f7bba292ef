// posecrafter-host: a bundle and OpenPose JSON in; a video, PNG files or raw RGB out. A whole example of embedding.
#include <posecrafter/posecrafter.hpp>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr const char* usage =
    "posecrafter-host BUNDLE POSES [--out FOLDER | FILE.mp4 | FILE.rgb] [--engine NAME] [--engine-library PATH]\n"
    "    [--device NAME] [--precision fp32|bf16] [--threads N] [--steps N] [--sampling-steps N] [--guidance G]\n"
    "    [--inversion reference|target|none] [--seed N]\n"
    "    [--person NAME|FOLDER] [--window N] [--decode-chunk N] [--repeat N]\n"
    "BUNDLE comes from `posecrafter export`, POSES is OpenPose JSON: a file, or a folder with a file for each frame.\n"
    "--out FOLDER writes PNG files, FILE.mp4 goes through ffmpeg, FILE.rgb is raw [M, H, W, 3].\n"
    "--repeat N renders N times more and prints the p50 and p99 of their latency.\n";

using Words = std::map<std::string, std::string>;
using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t interrupted = 0;

double milliseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

[[noreturn]] void refuse(const std::string& code, const std::string& message) {
    throw posecrafter::Failed(PC_REQUEST_ERROR, code, message);
}

Words read_words(int count, char** values) {
    static const std::vector<std::string> known = {
        "--out",     "--engine", "--engine-library", "--device",       "--precision",
        "--threads", "--steps",  "--sampling-steps", "--guidance",     "--inversion",
        "--seed",    "--person", "--window",         "--decode-chunk", "--repeat"};
    Words words;
    for (int i = 1; i < count; ++i) {
        const std::string word = values[i];
        if (word.rfind("--", 0) != 0) {
            if (!words.emplace(words.count("bundle") ? "poses" : "bundle", word).second)
                refuse("usage", "one word too many: " + word);
        } else if (std::find(known.begin(), known.end(), word) == known.end() || i + 1 == count) {
            refuse("usage", "unknown option, or one without its value: " + word);
        } else {
            words[word] = values[++i];
        }
    }
    if (!words.count("poses")) refuse("usage", "a bundle and poses are needed");
    return words;
}

template <class Number>
void set(const Words& words, const char* name, Number& field) {
    const auto found = words.find(name);
    if (found == words.end()) return;
    std::size_t used = 0;
    double value = 0;
    try {
        value = std::stod(found->second, &used);
    } catch (const std::exception&) {
    }
    if (used == 0 || used != found->second.size())
        refuse("usage", std::string(name) + " is not a number: " + found->second);
    field = static_cast<Number>(value);
}

void set(const Words& words, const char* name, const char*& field) {
    if (const auto found = words.find(name); found != words.end()) field = found->second.c_str();
}

int show(void*, const char* stage, std::int32_t done, std::int32_t total) {
    std::fprintf(stderr, "\r%-7s %3d/%-3d%s", stage, done, total, done == total ? "\n" : "");
    return interrupted;
}

posecrafter::Request make_request(const Words& words, const posecrafter::Poses& poses) {
    posecrafter::Request request(poses);
    set(words, "--steps", request.steps);
    set(words, "--sampling-steps", request.sampling_steps);
    set(words, "--guidance", request.guidance);
    set(words, "--seed", request.seed);
    set(words, "--window", request.window);
    set(words, "--decode-chunk", request.decode_chunk);
    if (const auto found = words.find("--inversion"); found != words.end()) {
        const std::map<std::string, int> choices = {
            {"reference", PC_INVERT_REFERENCE}, {"target", PC_INVERT_TARGET}, {"none", PC_INVERT_NONE}};
        if (!choices.count(found->second)) refuse("inversion", "--inversion is reference, target or none");
        request.inversion = choices.at(found->second);
    }
    request.progress = show;
    return request;
}

std::string quoted(const std::string& word) {
    std::string out = "'";
    for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

void write_raw(std::FILE* file, const posecrafter::Video& video, const std::string& name, int (*close)(std::FILE*)) {
    const bool written = file && std::fwrite(video.data.data(), 1, video.data.size(), file) == video.data.size();
    if (!file || close(file) != 0 || !written)
        refuse("not-writable", "cannot write " + name + " (for .mp4, ffmpeg must be installed)");
}

void write(const std::string& out, const posecrafter::Video& video, double fps) {
    const std::filesystem::path path(out);
    if (path.extension() == ".rgb") return write_raw(std::fopen(out.c_str(), "wb"), video, out, std::fclose);
    if (path.extension() == ".mp4") {
        const std::string size = std::to_string(video.width) + "x" + std::to_string(video.height);
        const std::string command = "ffmpeg -loglevel error -y -f rawvideo -pix_fmt rgb24 -s " + size + " -r " +
                                    std::to_string(fps) + " -i - -c:v libx264 -crf 12 -pix_fmt yuv420p " + quoted(out);
        return write_raw(popen(command.c_str(), "w"), video, out, pclose);
    }
    std::filesystem::create_directories(path);
    for (std::int32_t i = 0; i < video.frames; ++i) {
        char name[16];
        std::snprintf(name, sizeof name, "%05d.png", i);
        if (!stbi_write_png((path / name).c_str(), video.width, video.height, 3, video.frame(i), 3 * video.width))
            refuse("not-writable", "cannot write " + (path / name).string());
    }
}

// 0 where there is no /proc. Not getrusage's, which is handed down by the process that started this one.
double peak_megabytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) / 1024;
    return 0;
}

// Renders again and again; the first, which loads the graphs and inverts the reference, is not among them.
void measure(posecrafter::Session& session, posecrafter::Request request, int times) {
    request.progress = nullptr;
    std::vector<double> latencies;
    for (int i = 0; i < times && !interrupted; ++i) {
        const auto start = Clock::now();
        session.render(request);
        latencies.push_back(milliseconds_since(start));
    }
    std::sort(latencies.begin(), latencies.end());
    const auto quantile = [&](std::size_t percent) {
        return latencies.empty() ? 0.0 : latencies[(latencies.size() - 1) * percent / 100];
    };
    std::printf("renders %zu   p50 %.1f ms   p99 %.1f ms\n", latencies.size(), quantile(50), quantile(99));
}

void run(const Words& words) {
    const auto start = Clock::now();
    posecrafter::Options options;
    set(words, "--engine", options.engine);
    set(words, "--engine-library", options.engine_library);
    set(words, "--device", options.device);
    set(words, "--precision", options.precision);
    set(words, "--threads", options.threads);
    posecrafter::Session session(words.at("bundle"), options);
    if (words.count("--person")) session.load_person(words.at("--person"));
    const double opened = milliseconds_since(start);
    const auto poses = posecrafter::Poses::read(words.at("poses"));
    const posecrafter::Request request = make_request(words, poses);
    const posecrafter::Plan plan = session.plan(request);
    std::fprintf(stderr, "%s\n", plan.view().json);
    const auto begun = Clock::now();
    const posecrafter::Video video = session.render(request);
    const pc_description about = session.description();
    std::printf("engine %s on %s   opened in %.1f ms   first render %.1f ms\n", about.engine, about.device, opened,
                milliseconds_since(begun));
    if (words.count("--out")) write(words.at("--out"), video, about.fps);
    int times = 0;
    set(words, "--repeat", times);
    if (times > 0) measure(session, request, times);
    if (const double peak = peak_megabytes(); peak > 0) std::printf("peak memory %.1f MiB\n", peak);
}

}  // namespace

int main(int count, char** values) {
    std::signal(SIGINT, [](int) { interrupted = 1; });
    std::signal(SIGPIPE, SIG_IGN);
    try {
        run(read_words(count, values));
        return 0;
    } catch (const posecrafter::Failed& error) {
        std::fprintf(stderr, "error[%s]: %s\n", error.code().c_str(), error.what());
        if (error.code() == "usage") std::fputs(usage, stderr);
        return error.code() == "cancelled" ? 130 : 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error[not-writable]: %s\n", error.what());
        return 2;
    }
}
