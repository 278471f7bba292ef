// Vectors of floats in the widest registers of the instruction set that a file is compiled for. Included once by each
// of kernels_*.cpp, inside a namespace of its own: nothing here may be shared between them, and no template of the
// standard library may be used behind it, since the linker would keep one copy for all processors.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef PC_LANES
#if defined(__AVX512F__)
#define PC_LANES 16
#elif defined(__AVX__)
#define PC_LANES 8
#else
#define PC_LANES 4
#endif
#endif

#if PC_LANES == 16 || defined(__aarch64__)
#define PC_REGISTERS 32
#else
#define PC_REGISTERS 16
#endif

#if defined(__aarch64__) && !defined(__clang__)
// GCC would read all factors of a tile's column before it uses the first, and keep sums in memory meanwhile.
#pragma GCC optimize("no-schedule-insns")
#endif

constexpr int kLanes = PC_LANES;
/* Rows of a product's tile: its sums, two vectors a row, fill 24 of 32 registers, or 12 of 16. */
constexpr int kRows = PC_REGISTERS == 32 ? 12 : 6;

typedef float vec __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t ints __attribute__((vector_size(kLanes * 4)));
typedef float unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

static inline vec load(const float* p) {
    return *reinterpret_cast<const unaligned*>(p);
}

static inline void store(float* p, vec x) {
    *reinterpret_cast<unaligned*>(p) = x;
}

#if defined(__aarch64__)
/* A multiplication takes its factor from any lane of a register, so that one load serves two of them. */
typedef float pair __attribute__((vector_size(8)));
typedef float unaligned_pair __attribute__((vector_size(8), aligned(4), may_alias));

static inline pair load_pair(const float* p) {
    pair x = *reinterpret_cast<const unaligned_pair*>(p);
#ifndef __clang__
    asm("" : "+w"(x));  // GCC would load each by itself
#endif
    return x;
}
#endif

static inline vec splat(float x) {
    return x - vec{};  // not vec{} + x, which turns -0 into 0 and so costs an addition
}

/* A splat that the compiler cannot see through: for x86 GCC makes one max or min of a comparison and a choice, but not
 * where it knows the constant. */
static inline vec bound(float x) {
    vec same = splat(x);
#if defined(__x86_64__)
    asm("" : "+x"(same));
#endif
    return same;
}

static inline vec larger(vec a, vec b) {
    return a > b ? a : b;
}

/* The number i of a row that starts at p and is read to the end of i's four. */
static inline float factor(const float* p, int i) {
#if defined(__aarch64__)
    return load(p + i / 4 * 4)[i % 4];
#else
    return p[i];
#endif
}

static inline float sum(vec x) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += x[i];
    return total;
}

/* e^x to 2 ulp for x in -87..88; smaller x give e^-87, larger e^88. */
static inline vec exponential(vec x) {
    const vec low = bound(-87.0f), high = bound(88.0f);
    const vec shift = splat(12582912.0f);  // 1.5 * 2^23: rounds to whole numbers
    x = low > x ? low : x;                 // in this order NaN stays NaN
    x = high < x ? high : x;
    const vec shifted = x * 1.44269504f + shift;
    const vec whole = shifted - shift;
    const vec rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec y = splat(8.31252014e-3f);  // least relative error on -ln(2)/2..ln(2)/2: 1.05e-7
    y = y * rest + 4.18901568e-2f;
    y = y * rest + 1.66671146e-1f;
    y = y * rest + 4.99992315e-1f;
    y = y * rest + 1.0f;
    y = y * rest + 1.0f;
    return reinterpret_cast<vec>(reinterpret_cast<ints>(y) + (reinterpret_cast<ints>(shifted) << 23));
}

static inline vec silu(vec x) {
    return x / (1.0f + exponential(-x));
}

/* x Phi(x), with Phi from erf by Abramowitz and Stegun's 7.1.26: off by at most 1.5e-7. */
static inline vec gelu(vec x) {
    const vec half = x * 0.70710678f;
    const vec size = half < 0.0f ? -half : half;
    const vec t = 1.0f / (1.0f + 0.3275911f * size);
    vec y = splat(1.061405429f);
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    const vec tail = 0.5f * y * t * exponential(-size * size);  // 1 - Phi(|x|)
    return x * (x < 0.0f ? tail : 1.0f - tail);
}
