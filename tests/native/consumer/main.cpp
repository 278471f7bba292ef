#include <cstdio>
#include <posecrafter/posecrafter.hpp>

int main(int, char** words) {
    posecrafter::Options options;
    options.engine = words[3];
    options.engine_library = words[4];
    posecrafter::Session session(words[1], options);
    const posecrafter::Video video = session.render(posecrafter::Poses::read(words[2]));
    std::FILE* out = std::fopen(words[5], "wb");
    std::fwrite(video.data.data(), 1, video.data.size(), out);
    return std::fclose(out);
}
