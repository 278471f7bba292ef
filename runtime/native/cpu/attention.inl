// Attention. Lanes are rows of q (attend) or places of the image (attend_temporal), so that the softmax's maximum and
// sum never cross lanes, and a count of keys or of channels that is no multiple of the lanes costs nothing.
#pragma once

#include "simd.hpp"

constexpr int kWide = 2 * kLanes;   // rows of q in a block
constexpr int kBlock = 10 * kRows;  // keys whose scores are held at a time: with AVX-512 15 KiB, half of L1
constexpr int kTall = kRows / 2;    // frames in a block: with 4 sums each they fill the registers

typedef float quad __attribute__((vector_size(16)));
typedef float unaligned_quad __attribute__((vector_size(16), aligned(4), may_alias));

static inline quad load_quad(const float* p) {
    return *reinterpret_cast<const unaligned_quad*>(p);
}

/* Four numbers of every fourth row, side by side. */
static inline vec join(const float* p, [[maybe_unused]] std::ptrdiff_t row) {
#if PC_LANES == 16
    const auto low = __builtin_shufflevector(load_quad(p), load_quad(p + 4 * row), 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(load_quad(p + 8 * row), load_quad(p + 12 * row), 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif PC_LANES == 8
    return __builtin_shufflevector(load_quad(p), load_quad(p + 4 * row), 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return load_quad(p);
#endif
}

/* Every four lanes of the result are A, B, C, D of the eight: four of x, four of y. */
template <int A, int B, int C, int D>
static inline vec pick(vec x, vec y) {
    constexpr int a = A % 4 + A / 4 * kLanes, b = B % 4 + B / 4 * kLanes;
    constexpr int c = C % 4 + C / 4 * kLanes, d = D % 4 + D / 4 * kLanes;
#if PC_LANES == 16
    return __builtin_shufflevector(x, y, a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12,
                                   b + 12, c + 12, d + 12);
#elif PC_LANES == 8
    return __builtin_shufflevector(x, y, a, b, c, d, a + 4, b + 4, c + 4, d + 4);
#else
    return __builtin_shufflevector(x, y, a, b, c, d);
#endif
}

/* Every four lanes of the four vectors, a matrix of 4 x 4, transposed. */
static inline void transpose_quads(vec (&x)[4]) {
    const vec a = pick<0, 4, 1, 5>(x[0], x[1]), b = pick<2, 6, 3, 7>(x[0], x[1]);
    const vec c = pick<0, 4, 1, 5>(x[2], x[3]), d = pick<2, 6, 3, 7>(x[2], x[3]);
    x[0] = pick<0, 1, 4, 5>(a, c);
    x[1] = pick<2, 3, 6, 7>(a, c);
    x[2] = pick<0, 1, 4, 5>(b, d);
    x[3] = pick<2, 3, 6, 7>(b, d);
}

/* to[c][lane] = from[lane][c] for c < width; lanes from `rows` on repeat the last row. */
static void gather(const float* from, std::ptrdiff_t from_row, int rows, int width, float* to, std::ptrdiff_t to_row) {
    if (rows < kLanes || width < 4) {
        for (int c = 0; c < width; ++c)
            for (int i = 0; i < kLanes; ++i) to[c * to_row + i] = from[(i < rows ? i : rows - 1) * from_row + c];
        return;
    }
    for (int next = 0; next < width; next += 4) {
        const int c = next < width - 4 ? next : width - 4;  // the last four may overlap those before
        vec x[4];
        for (int i = 0; i < 4; ++i) x[i] = join(from + i * from_row + c, from_row);
        transpose_quads(x);
        for (int i = 0; i < 4; ++i) store(to + (c + i) * to_row, x[i]);
    }
}

/* to[lane][c] = scale[lane] from[c][lane] for c < width and lane < rows. */
static void scatter(const float* from, std::ptrdiff_t from_row, int rows, int width, vec scale, float* to,
                    std::ptrdiff_t to_row) {
    if (rows < kLanes || width < 4) {
        for (int i = 0; i < kLanes && i < rows; ++i)
            for (int c = 0; c < width; ++c) to[i * to_row + c] = from[c * from_row + i] * scale[i];
        return;
    }
    for (int next = 0; next < width; next += 4) {
        const int c = next < width - 4 ? next : width - 4;
        vec x[4];
        for (int i = 0; i < 4; ++i) x[i] = load(from + (c + i) * from_row) * scale;
        transpose_quads(x);
        for (int i = 0; i < kLanes; ++i)
            __builtin_memcpy(to + i * to_row + c, reinterpret_cast<const float*>(x + i % 4) + i / 4 * 4, 16);
    }
}

/* 2^x to 2 ulp for x in -126..0; smaller x give 2^-126. */
static inline vec power_of_two(vec x) {
    const vec low = bound(-126.0f), shift = splat(12582912.0f);  // as in exponential
    x = low > x ? low : x;
    const vec shifted = x + shift;
    const vec rest = x - (shifted - shift);
    vec y = splat(1.3300264e-3f);  // least relative error on -1/2..1/2: 1.05e-7
    y = y * rest + 9.6697084e-3f;
    y = y * rest + 5.55055999e-2f;
    y = y * rest + 2.40222816e-1f;
    y = y * rest + 6.93147181e-1f;
    y = y * rest + 1.0f;
    return reinterpret_cast<vec>(reinterpret_cast<ints>(y) + (reinterpret_cast<ints>(shifted) << 23));
}

static inline vec highest(const float* scores, std::ptrdiff_t row, int keys) {
    vec most = load(scores);
    for (int i = 1; i < keys; ++i) most = larger(load(scores + i * row), most);
    return most;
}

/* scores = 2^(scale scores - most); returns their sum. */
static inline vec weigh(float* scores, std::ptrdiff_t row, int keys, float scale, vec most) {
    vec total{};
    for (int i = 0; i < keys; ++i) {
        const vec weight = power_of_two(load(scores + i * row) * scale - most);
        store(scores + i * row, weight);
        total += weight;
    }
    return total;
}

/* 1 / sqrt(d), and log2(e) so that e^x is a power of two. */
static inline float score_scale(int width) {
    return 1.44269504f / __builtin_sqrtf(static_cast<float>(width));
}

/* c [N, kWide] = a^T b, added to c fade [kWide] where there is a fade. a: a panel [depth, kRows]; b: [depth, kWide].
 * Every loop over the sums is unrolled by order: of one that is not, GCC puts all sums in memory first. */
template <int N = kRows>
static void panel_product(int n, const float* a, const float* b, int depth, const float* fade, float* c) {
    if constexpr (N > 1)
        if (n < N) return panel_product<N - 1>(n, a, b, depth, fade, c);
    vec left[N]{}, right[N]{};
    for (int k = 0; k < depth; ++k, a += kRows, b += kWide) {
        const vec b_left = load(b), b_right = load(b + kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < N; ++i) {
            left[i] += factor(a, i) * b_left;
            right[i] += factor(a, i) * b_right;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < N; ++i, c += kWide) {
        store(c, fade ? left[i] + load(c) * load(fade) : left[i]);
        store(c + kLanes, fade ? right[i] + load(c + kLanes) * load(fade + kLanes) : right[i]);
    }
}

static inline int whole_panels(int n) {
    return (n + kRows - 1) / kRows * kRows;
}

/* Panels of k [d, kRows of the keys], then panels of v [keys, kRows of the d]; the last of each filled up with 0. */
static std::size_t packed_head_size(int keys, int width) {
    return static_cast<std::size_t>(whole_panels(keys)) * width + static_cast<std::size_t>(whole_panels(width)) * keys;
}

static void pack_head(const Attention& t, int head, float* packed) {
    const float* k = t.k + static_cast<std::ptrdiff_t>(head) * t.width;
    const float* v = t.v + static_cast<std::ptrdiff_t>(head) * t.width;
    for (int key = 0; key < t.keys; key += kRows)
        for (int c = 0; c < t.width; ++c)
            for (int i = key; i < key + kRows; ++i) *packed++ = i < t.keys ? k[i * t.ldk + c] : 0.0f;
    for (int c = 0; c < t.width; c += kRows)
        for (int key = 0; key < t.keys; ++key)
            for (int i = c; i < c + kRows; ++i) *packed++ = i < t.width ? v[key * t.ldk + i] : 0.0f;
}

static std::size_t attend_scratch(int keys, int width) {
    return static_cast<std::size_t>(kWide) * (2 * width + (keys < kBlock ? keys : kBlock));
}

static void attend(const Attention& t, int head, const float* packed, int begin, int end, float* scratch) {
    const int d = t.width;
    const float scale = score_scale(d);
    const float* values = packed + static_cast<std::ptrdiff_t>(whole_panels(t.keys)) * d;
    float* queries = scratch;            // [d, kWide]
    float* mixed = queries + d * kWide;  // [d, kWide]: the weighted sums of v
    float* scores = mixed + d * kWide;   // [kBlock, kWide]
    for (std::ptrdiff_t row = begin; row < end; row += kWide) {
        const float* q = t.q + row * t.ldq + static_cast<std::ptrdiff_t>(head) * d;
        float* out = t.out + row * t.ldo + static_cast<std::ptrdiff_t>(head) * d;
        const int rows = end - row < kWide ? static_cast<int>(end - row) : kWide;
        vec most[2] = {splat(-3e38f), splat(-3e38f)}, total[2] = {};
        const int half = rows < kLanes ? rows : kLanes;
        gather(q, t.ldq, rows, d, queries, kWide);
        gather(q + half * t.ldq, t.ldq, rows - half, d, queries + kLanes, kWide);
        for (std::ptrdiff_t key = 0; key < t.keys; key += kBlock) {
            const int n = t.keys - key < kBlock ? static_cast<int>(t.keys - key) : kBlock;
            for (int i = 0; i < n; i += kRows)
                panel_product(n - i, packed + (key + i) * d, queries, d, nullptr, scores + i * kWide);
            float fade[kWide];  // of what was summed under an earlier maximum
            for (int side = 0; side < 2; ++side) {
                const vec before = most[side];
                most[side] = larger(highest(scores + side * kLanes, kWide, n) * scale, before);
                const vec lost = power_of_two(before - most[side]);
                total[side] = total[side] * lost + weigh(scores + side * kLanes, kWide, n, scale, most[side]);
                store(fade + side * kLanes, lost);
            }
            for (std::ptrdiff_t c = 0; c < d; c += kRows)
                panel_product(static_cast<int>(d - c), values + c * t.keys + key * kRows, scores, n,
                              key ? fade : nullptr, mixed + c * kWide);
        }
        scatter(mixed, kWide, rows, d, 1.0f / total[0], out, t.ldo);
        scatter(mixed + kLanes, kWide, rows - half, d, 1.0f / total[1], out + half * t.ldo, t.ldo);
    }
}

/* c [N, n] = a b, of vectors: a [N, depth], b [depth, n]. */
template <int N, int Columns>
static inline void lane_tile(const float* a, const float* b, int n, int depth, float* c) {
    vec sums[N][Columns]{};
    for (int k = 0; k < depth; ++k)
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) {
            const vec right = load(b + (k * n + j) * kLanes);
#pragma GCC unroll 6
            for (int i = 0; i < N; ++i) sums[i][j] += load(a + (i * depth + k) * kLanes) * right;
        }
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) store(c + (i * n + j) * kLanes, sums[i][j]);
}

template <int N = kTall>
static void lane_product(int rows, const float* a, const float* b, int n, int depth, float* c) {
    if constexpr (N > 1)
        if (rows < N) return lane_product<N - 1>(rows, a, b, n, depth, c);
    int j = 0;
    for (; j + 4 <= n; j += 4) lane_tile<N, 4>(a, b + j * kLanes, n, depth, c + j * kLanes);
    for (; j < n; ++j) lane_tile<N, 1>(a, b + j * kLanes, n, depth, c + j * kLanes);
}

/* Asks for what `gather` will read. The processor itself foresees no stride of a frame: 17 frames of 64 x 136 places
 * took two thirds of the time with the next head asked for among this one's arithmetic. Into L2: L1 is full. */
static inline void expect(const float* from, std::ptrdiff_t from_row, int width) {
    for (int i = 0; i < kLanes; ++i)
        for (int c = 0; c < width; c += 16) __builtin_prefetch(from + i * from_row + c, 0, 2);
}

static std::size_t temporal_scratch(int frames, int width) {
    return static_cast<std::size_t>(kLanes) * (2 * frames * width + kTall * (frames + width));
}

static void attend_temporal(const Attention& t, std::ptrdiff_t frame_q, std::ptrdiff_t frame_o, int begin, int end,
                            float* scratch) {
    const int d = t.width, frames = t.keys;
    const float scale = score_scale(d);
    float* keys = scratch;                          // [d, frames, kLanes]
    float* values = keys + frames * d * kLanes;     // [frames, d, kLanes]
    float* queries = values + frames * d * kLanes;  // [kTall, d, kLanes], then the weighted sums of v
    float* scores = queries + kTall * d * kLanes;   // [kTall, frames, kLanes]
    for (std::ptrdiff_t place = begin; place < end; place += kLanes)
        for (int head = 0; head < t.heads; ++head) {
            const int places = end - place < kLanes ? static_cast<int>(end - place) : kLanes;
            const std::ptrdiff_t from = place * t.ldq + head * d, to = place * t.ldo + head * d;
            const std::ptrdiff_t next = from + (head + 1 < t.heads ? d : kLanes * t.ldq - head * d);
            for (int f = 0; f < frames; ++f) {
                gather(t.k + from + f * frame_q, t.ldq, places, d, keys + f * kLanes, frames * kLanes);
                gather(t.v + from + f * frame_q, t.ldq, places, d, values + f * d * kLanes, kLanes);
            }
            for (int first = 0; first < frames; first += kTall) {
                const int n = frames - first < kTall ? frames - first : kTall;
                for (int i = 0; i < n; ++i)
                    gather(t.q + from + (first + i) * frame_q, t.ldq, places, d, queries + i * d * kLanes, kLanes);
                lane_product(n, queries, keys, frames, d, scores);
                vec total[kTall];
                for (int i = 0; i < n; ++i) {
                    float* row = scores + i * frames * kLanes;
                    total[i] = weigh(row, kLanes, frames, scale, highest(row, kLanes, frames) * scale);
                    const std::ptrdiff_t at = next + (first + i) * frame_q;
                    expect(t.q + at, t.ldq, d);
                    expect(t.k + at, t.ldq, d);
                    expect(t.v + at, t.ldq, d);
                }
                lane_product(n, scores, values, d, frames, queries);
                for (int i = 0; i < n; ++i)
                    scatter(queries + i * d * kLanes, kLanes, places, d, 1.0f / total[i],
                            t.out + to + (first + i) * frame_o, t.ldo);
            }
        }
}
