#include "noise.hpp"

#include <array>
#include <bit>
#include <cmath>

namespace posecrafter {
namespace {

__extension__ using Wide = unsigned __int128;

// numpy's SeedSequence: a hash that spreads a seed over four words (M. O'Neill's seed_seq_fe).
class SeedSequence {
  public:
    explicit SeedSequence(std::uint64_t seed) {
        const std::array<std::uint32_t, 4> entropy{static_cast<std::uint32_t>(seed),
                                                   static_cast<std::uint32_t>(seed >> 32)};
        for (std::size_t i = 0; i < 4; ++i) pool_[i] = hash(entropy[i], 0x931e8875U);
        for (std::size_t from = 0; from < 4; ++from)
            for (std::size_t to = 0; to < 4; ++to)
                if (from != to) pool_[to] = mix(pool_[to], hash(pool_[from], 0x931e8875U));
        constant_ = 0x8b51f9ddU;
    }

    std::uint64_t next() {
        const std::uint64_t low = word();
        return low | (std::uint64_t(word()) << 32);
    }

  private:
    std::uint32_t word() { return hash(pool_[place_++ % 4], 0x58f38dedU); }

    std::uint32_t hash(std::uint32_t value, std::uint32_t factor) {
        value ^= constant_;
        constant_ *= factor;
        value *= constant_;
        return value ^ (value >> 16);
    }

    static std::uint32_t mix(std::uint32_t x, std::uint32_t y) {
        const std::uint32_t result = 0xca01f9ddU * x - 0x4973f715U * y;
        return result ^ (result >> 16);
    }

    std::array<std::uint32_t, 4> pool_{};
    std::uint32_t constant_ = 0x43b0d7e5U;
    std::size_t place_ = 0;
};

// PCG XSL RR 128/64 (M. O'Neill 2014).
class Pcg64 {
  public:
    explicit Pcg64(std::uint64_t seed) {
        SeedSequence words(seed);
        const Wide start_high = words.next(), start = (start_high << 64) | words.next();
        const Wide stream_high = words.next(), stream = (stream_high << 64) | words.next();
        increment_ = (stream << 1) | 1;
        advance();
        state_ += start;
        advance();
    }

    std::uint64_t next() {
        advance();
        const auto folded = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
        return std::rotr(folded, static_cast<int>(state_ >> 122));
    }

    // In [0, 1), 53 bits.
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  private:
    void advance() {
        constexpr Wide factor = (Wide(0x2360ED051FC65DA4U) << 64) | 0x4385DF649FCCF645U;
        state_ = state_ * factor + increment_;
    }

    Wide state_ = 0, increment_ = 0;
};

// The ziggurat of Marsaglia and Tsang (2000): 256 strips of equal area under the normal density.
class Ziggurat {
  public:
    Ziggurat() {
        const long double area = 0.00492867323397465524494L;
        long double edge = tail;
        height_[255] = static_cast<double>(std::exp(-0.5L * edge * edge));
        width_[255] = static_cast<double>(edge / mantissa);
        inside_[0] = static_cast<std::uint64_t>(edge * height_[255] / area * mantissa);
        width_[0] = static_cast<double>(area / height_[255] / mantissa);
        height_[0] = 1;
        for (std::size_t i = 254; i > 0; --i) {
            const long double x = std::sqrt(-2 * std::log(area / edge + height_[i + 1]));
            inside_[i + 1] = static_cast<std::uint64_t>(x / edge * mantissa);
            width_[i] = static_cast<double>(x / mantissa);
            height_[i] = static_cast<double>(std::exp(-0.5L * x * x));
            edge = x;
        }
    }

    double draw(Pcg64& random) const {
        for (;;) {
            const std::uint64_t bits = random.next();
            const std::size_t strip = bits & 255;
            const bool negative = (bits >> 8) & 1;
            const std::uint64_t place = (bits >> 9) & 0xfffffffffffffU;
            const double size = static_cast<double>(place) * width_[strip], x = negative ? -size : size;
            if (place < inside_[strip]) return x;
            if (strip == 0) {
                const double beyond = draw_tail(random);
                return (place >> 8) & 1 ? -beyond : beyond;
            }
            const double level = (height_[strip - 1] - height_[strip]) * random.uniform() + height_[strip];
            if (level < std::exp(-0.5 * x * x)) return x;
        }
    }

  private:
    static constexpr double tail = 3.6541528853610088, mantissa = 0x1p52;

    static double draw_tail(Pcg64& random) {
        for (;;) {
            const double x = -0.27366123732975828 * std::log1p(-random.uniform());
            const double y = -std::log1p(-random.uniform());
            if (y + y > x * x) return tail + x;
        }
    }

    std::array<double, 256> width_{}, height_{};
    std::array<std::uint64_t, 256> inside_{};
};

}  // namespace

std::vector<float> gaussian_noise(std::uint64_t seed, std::size_t count) {
    Pcg64 random(seed);
    const Ziggurat ziggurat;
    std::vector<float> out(count);
    for (float& value : out) value = static_cast<float>(ziggurat.draw(random));
    return out;
}

}  // namespace posecrafter
