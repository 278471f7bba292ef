// Sampling in fewer steps than inversion: their numbers, how many a request gets, and what a render makes of them.
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <posecrafter/posecrafter.hpp>
#include <sstream>

#include "check.hpp"
#include "error.hpp"
#include "noise.hpp"
#include "schedule.hpp"
#include "small_bundle.hpp"

namespace {

using posecrafter::Schedule;
using posecrafter::Step;

constexpr double kSteps = 1e-12;
constexpr double kLatents = 1e-4;  // of float32 numbers up to about 40; measured: 1.4e-5

double off(const Step& one, const Step& other) {
    return std::fmax(std::abs(one.a - other.a), std::fmax(std::abs(one.b - other.b), std::abs(one.c - other.c)));
}

void as_many_steps_are_ddim() {
    const auto back = Schedule().sampling(25, 25), there = Schedule().inversion(25);
    CLAIM(back.size() == 25);
    for (std::size_t i = 0; i < back.size(); ++i) {
        const Step& inverse = there[24 - i];
        CLAIM(off(back[i], {0, 1 / inverse.a, -inverse.b / inverse.a, 0}) < kSteps);
        CLAIM(back[i].timestep == inverse.timestep);
    }
}

// By Python's math alone: abar a running product, b = sqrt(abar_t) (rho_t - rho_s).
void ten_steps_in_place_of_25_are_these() {
    const Step expected[] = {
        {961, 1.6962243890516, -0.7005682429363, 0},
        {861, 1.5657722269230, -0.5753037943831, -0.1508639411634},
        {761, 1.4549989437134, -0.4730727082744, -0.1336798274310},
        {661, 1.3610464862010, -0.3912922524554, -0.1188972060993},
        {561, 1.2815866700321, -0.3272406940647, -0.1067715098138},
        {461, 1.2147235816173, -0.2782507498505, -0.0973863128704},
        {361, 1.1589168181125, -0.2423103103667, -0.0910385188475},
        {261, 1.1129211337548, -0.2195933263480, -0.0894070973834},
        {161, 1.0757391143314, -0.2209041058919, -0.1032883840884},
        {61, 1.0311018382916, -0.2238689566640, -0.1100151272997},
    };
    const auto steps = Schedule().sampling(25, 10);
    CLAIM(steps.size() == 10);
    for (std::size_t i = 0; i < steps.size(); ++i) {
        CLAIM(steps[i].timestep == expected[i].timestep);
        CLAIM(off(steps[i], expected[i]) < kSteps);
    }
}

// Where x stands still but for a, it comes to the same level however many steps go there.
void any_count_goes_from_the_same_level_to_the_same() {
    for (const bool to_one : {false, true})
        for (const int steps : {1, 2, 7, 25, 500, 999}) {
            Schedule schedule;
            schedule.set_alpha_to_one = to_one;
            const auto product = [&](int count) {
                double a = 1;
                for (const Step& step : schedule.sampling(steps, count)) a *= step.a;
                return a;
            };
            const auto ddim = product(steps);
            for (const int count : {1, 2, 3, 10, 24, steps - 1})
                if (count >= 1 && count < steps) CLAIM(std::abs(product(count) / ddim - 1) < 1e-9);
        }
    const auto odd = Schedule().sampling(7, 3);  // 994 apart: 853 to -141
    CLAIM(odd[0].timestep == 853 && odd[1].timestep == 522 && odd[2].timestep == 190);
}

void counts_out_of_range_are_refused() {
    const auto refused = [](const Schedule& schedule, int steps, int count, int most) {
        std::string code, message;
        try {
            schedule.sampling(steps, count);
        } catch (const posecrafter::Error& error) {
            code = error.code();
            message = error.what();
        }
        CLAIM(code == "sampling-steps-range");
        CLAIM(message == "sampling_steps is " + std::to_string(count) + "; it must be between 1 and " +
                             std::to_string(most) + ", the inverse steps");
    };
    for (const int count : {-1, 0, 26, 1000}) refused(Schedule(), 25, count, 25);
    Schedule shifted;
    shifted.steps_offset = 2;  // of 1000 steps the last two see the last timestep
    CLAIM(shifted.sampling(1000, 998).size() == 998);
    refused(shifted, 1000, 999, 998);
}

// The small bundle on the fake engine, and a request whose eps is sin(timestep) + 0.01 x.
struct Fixture {
    SmallBundle bundle;
    std::vector<float> points = moving_person(2), words = std::vector<float>(30, 0.0F);

    posecrafter::Session open() const {
        posecrafter::Options options;
        options.engine = FAKE_ENGINE;
        return posecrafter::Session(bundle.path(), options);
    }
    posecrafter::Request request(int steps, int sampling_steps) const {
        posecrafter::Request out;
        out.poses = {2, 64, 64, points.data()};
        out.steps = steps;
        out.sampling_steps = sampling_steps;
        return out;
    }
    posecrafter::Request plain(int steps, int sampling_steps) const {
        posecrafter::Request out = request(steps, sampling_steps);
        out.inversion = PC_INVERT_NONE;
        out.edit = 0;
        out.guidance = 1;
        out.control_scale = 0;
        out.prompt = words.data();
        return out;
    }
    // Another default than the bundle's 4 steps for both.
    void default_to(int sampling_steps) const {
        std::stringstream content;
        content << std::ifstream(bundle.folder() / "manifest.json").rdbuf();
        auto manifest = nlohmann::ordered_json::parse(content.str());
        manifest["defaults"]["sampling_steps"] = sampling_steps;
        std::ofstream(bundle.folder() / "manifest.json") << manifest.dump();
    }
};

std::size_t planned(posecrafter::Session& session, const posecrafter::Request& request) {
    const posecrafter::Plan plan = session.plan(request);
    return nlohmann::json::parse(plan.view().json)["sampling_steps"].get<std::size_t>();
}

void a_requests_count_holds_before_its_steps_before_the_bundles() {
    Fixture f;
    for (const auto& [given, otherwise] : {std::pair(0, 4), {3, 3}}) {
        f.default_to(given);
        posecrafter::Session session = f.open();
        CLAIM(session.description().sampling_steps == otherwise);
        CLAIM(planned(session, f.request(PC_DEFAULT, PC_DEFAULT)) == std::size_t(otherwise));
        CLAIM(planned(session, f.request(PC_DEFAULT, 2)) == 2);
        CLAIM(planned(session, f.request(6, PC_DEFAULT)) == 6);
        CLAIM(planned(session, f.request(2, PC_DEFAULT)) == 2);
        CLAIM(planned(session, f.request(6, 5)) == 5);
        const posecrafter::Request many = f.request(PC_DEFAULT, 5);
        pc_planned* plan = nullptr;
        REFUSED("sampling-steps-range", pc_plan(session.get(), &many, &plan));
        CLAIM(std::strcmp(pc_last_error_message(),
                          "sampling_steps is 5; it must be between 1 and 4, the inverse steps") == 0);
    }
    f.default_to(5);  // more than its steps
    posecrafter::Session session = f.open();
    const posecrafter::Request request = f.request(PC_DEFAULT, PC_DEFAULT);
    pc_planned* plan = nullptr;
    REFUSED("sampling-steps-range", pc_plan(session.get(), &request, &plan));
    f.default_to(-1);
    pc_session* none = nullptr;
    REFUSED("bundle-manifest", pc_open(f.bundle.path().c_str(), nullptr, &none));
}

void a_plan_tells_every_step_and_counts_them() {
    const Fixture f;
    posecrafter::Session session = f.open();
    const posecrafter::Plan plan = session.plan(f.request(4, 2));
    // One frame inverted, then the reference and two targets with two prompts.
    CLAIM(plan.view().evaluations == 4 * 1 + 2 * 2 * 3);
    const auto steps = nlohmann::json::parse(plan.view().json)["steps"];
    const auto same = [](const nlohmann::json& told, const std::vector<Step>& expected) {
        CLAIM(told.size() == expected.size());
        for (std::size_t i = 0; i < expected.size(); ++i) {
            const Step& step = expected[i];
            CLAIM(told[i] == nlohmann::json::array({step.timestep, step.a, step.b, step.c}));
        }
    };
    same(steps["inversion"], Schedule().inversion(4));
    same(steps["sampling"], Schedule().sampling(4, 2));
}

std::vector<float> latents_of(posecrafter::Session& session, const posecrafter::Request& request) {
    std::vector<float> latents(2 * 4 * 8 * 8);
    pc_output output;
    pc_output_init(&output);
    output.latents = latents.data();
    output.latents_bytes = latents.size() * sizeof(float);
    WELL(pc_render(session.get(), &request, &output));
    return latents;
}

// Of the fake engine's network; order 1 leaves c out.
std::vector<double> solved(const std::vector<Step>& steps, int order) {
    const auto noise = posecrafter::gaussian_noise(0, 4 * 8 * 8);
    std::vector<double> out;
    for (int frame = 0; frame < 2; ++frame)
        for (double x : noise) {
            double before = 0;
            for (const Step& step : steps) {
                const double eps = std::sin(step.timestep) + 0.01 * x;
                x = step.a * x + step.b * eps + (order == 2 ? step.c * (eps - before) : 0);
                before = eps;
            }
            out.push_back(x);
        }
    return out;
}

double furthest(const std::vector<float>& latents, const std::vector<double>& expected) {
    double most = 0;
    for (std::size_t i = 0; i < latents.size(); ++i) most = std::fmax(most, std::abs(latents[i] - expected[i]));
    return most;
}

void fewer_steps_are_taken_in_second_order() {
    const Fixture f;
    posecrafter::Session session = f.open();
    for (const int count : {2, 3, 10, 24}) {
        const auto latents = latents_of(session, f.plain(25, count));
        CLAIM(furthest(latents, solved(Schedule().sampling(25, count), 2)) < kLatents);
        CLAIM(furthest(latents, solved(Schedule().sampling(25, count), 1)) > 100 * kLatents);
    }
    for (const int count : {1, 25})
        CLAIM(furthest(latents_of(session, f.plain(25, count)), solved(Schedule().sampling(25, count), 1)) < kLatents);
}

// Its key knows nothing of sampling.
void an_inverted_frame_serves_any_count() {
    const Fixture f;
    posecrafter::Session session = f.open();
    latents_of(session, f.request(4, 2));
    posecrafter::Request again = f.request(4, 3);
    std::vector<std::string> stages;
    again.user = &stages;
    again.progress = [](void* user, const char* stage, std::int32_t, std::int32_t) {
        static_cast<std::vector<std::string>*>(user)->push_back(stage);
        return 0;
    };
    latents_of(session, again);
    CLAIM(stages == std::vector<std::string>({"sample", "sample", "sample", "sample", "decode", "decode"}));
}

// Built against a header without the field: whatever lies behind its structure is not read, nor written.
void an_older_programs_structures_go_on_working() {
    const Fixture f;
    posecrafter::Session session = f.open();
    const auto expected = latents_of(session, f.request(4, PC_DEFAULT));
    posecrafter::Request older = f.request(4, 2);
    older.struct_size = offsetof(pc_request, sampling_steps);
    CLAIM(latents_of(session, older) == expected);
    pc_description about;
    pc_description_init(&about);
    about.struct_size = offsetof(pc_description, sampling_steps);
    about.sampling_steps = 77;
    WELL(pc_describe(session.get(), &about));
    CLAIM(about.steps == 4 && about.sampling_steps == 77);
}

}  // namespace

int main() {
    as_many_steps_are_ddim();
    ten_steps_in_place_of_25_are_these();
    any_count_goes_from_the_same_level_to_the_same();
    counts_out_of_range_are_refused();
    a_requests_count_holds_before_its_steps_before_the_bundles();
    a_plan_tells_every_step_and_counts_them();
    fewer_steps_are_taken_in_second_order();
    an_inverted_frame_serves_any_count();
    an_older_programs_structures_go_on_working();
    return failures;
}
