#include "request.hpp"

#include <cmath>

#include "error.hpp"
#include "manifest.hpp"

namespace posecrafter {

void Request::check() const {
    const auto refuse = [](const char* code, const std::string& message) { throw Error(Kind::request, code, message); };
    if (frames < 1) refuse("poses-empty", "the target has no frame; give at least one pose");
    if (!poses && !images)
        refuse("poses-empty", "the target has neither key points nor control images; give one of them");
    if (!poses && !reference)
        refuse("reference-missing", "control images alone do not choose a training frame; give its index as reference");
    if (steps && (*steps < 1 || *steps > 1000))
        refuse("steps-range", text("steps is ", *steps, "; it must be between 1 and 1000"));
    if (sampling_steps && (*sampling_steps < 1 || *sampling_steps > 1000))
        refuse("sampling-steps-range", text("sampling_steps is ", *sampling_steps, "; it must be between 1 and 1000"));
    if (guidance && !(*guidance >= 0 && *guidance <= 50))
        refuse("guidance-range", text("guidance is ", *guidance, "; it must be between 0 and 50"));
    if (control_scale && !(*control_scale >= 0 && *control_scale <= 4))
        refuse("control-scale-range", text("control_scale is ", *control_scale, "; it must be between 0 and 4"));
    if (inversion_iterations && (*inversion_iterations < 1 || *inversion_iterations > most_iterations))
        refuse("inversion-iterations-range",
               text("inversion_iterations is ", *inversion_iterations, "; it must be between 1 and ", most_iterations));
    if (window && *window < 1) refuse("window-range", text("window is ", *window, "; it must be at least 1 frame"));
    if (decode_chunk < 1)
        refuse("decode-chunk-range", text("decode_chunk is ", decode_chunk, "; it must be at least 1 frame"));
}

}  // namespace posecrafter
