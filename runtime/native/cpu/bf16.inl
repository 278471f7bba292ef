// Products of numbers rounded to bf16, with sums in float32: for processors that multiply two at a time (AVX512-BF16,
// ARM's BF16). b is packed by pairs of rows: a panel's row is 2 kLanes columns, each the two numbers of its pair.
#pragma once

#include "simd.hpp"

/* Numbers that a product rounds at a time: 48 rows of 5120, or kRows of the longest k. */
constexpr int kRounded = 240 * 1024;
constexpr int kLongest = kRounded / kRows - 2;

/* halves: 2 kLanes numbers in bf16. splat_pair: the two at p in every lane. add_products: to each lane of sums, the
 * products of its two numbers. store_rounded: kLanes numbers. */
#if defined(__aarch64__)
typedef bfloat16x8_t halves;

static inline halves load_halves(const std::uint16_t* p) {
    return vreinterpretq_bf16_u16(vld1q_u16(p));
}

static inline halves splat_pair(const std::uint16_t* p) {
    std::uint32_t two;
    __builtin_memcpy(&two, p, 4);
    return vreinterpretq_bf16_u32(vdupq_n_u32(two));
}

static inline vec add_products(vec sums, halves a, halves b) {
    return vbfdotq_f32(sums, a, b);
}

/* The pair is one of two. Not vbfdotq_lane_f32, for which Clang fills a register with the pair. */
template <int Lane>
static inline void add_products_by_lane(vec& sums, halves a, uint16x4_t pairs) {
    if constexpr (Lane == 0)
        asm("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(sums) : "w"(a), "w"(pairs));
    else
        asm("bfdot %0.4s, %1.8h, %2.2h[1]" : "+w"(sums) : "w"(a), "w"(pairs));
}

static inline void store_rounded(std::uint16_t* p, vec x) {
    vst1_u16(p, vreinterpret_u16_bf16(vcvt_bf16_f32(x)));
}
#else
typedef __m512bh halves;

static inline halves load_halves(const std::uint16_t* p) {
    return reinterpret_cast<halves>(_mm512_loadu_si512(p));
}

static inline halves splat_pair(const std::uint16_t* p) {
    int two;
    __builtin_memcpy(&two, p, 4);
    return reinterpret_cast<halves>(_mm512_set1_epi32(two));
}

static inline vec add_products(vec sums, halves a, halves b) {
    return _mm512_dpbf16_ps(sums, a, b);
}

static inline void store_rounded(std::uint16_t* p, vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}
#endif

static inline std::uint16_t to_bf16(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

/* `columns` columns of b from `left` on, as half a panel or a whole one. */
static inline void pack_pair(const float* b, std::ptrdiff_t row, std::ptrdiff_t column, int pair, int k, int left,
                             int n, int columns, std::uint16_t* packed) {
    for (int j = 0; j < columns; ++j)
        for (int i = 2 * pair; i < 2 * pair + 2; ++i)
            *packed++ = i < k && left + j < n ? to_bf16(b[i * row + (left + j) * column]) : 0;
}

static void pack_bf16(const float* b, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n, float* packed) {
    auto* to = reinterpret_cast<std::uint16_t*>(packed);
    for (int left = 0; left < n; left += 2 * kLanes)
        for (int pair = 0; 2 * pair < k; ++pair, to += 4 * kLanes)
            pack_pair(b, row, column, pair, k, left, n, 2 * kLanes, to);
}

static void pack_gated_bf16(const float* value, const float* gate, std::ptrdiff_t row, std::ptrdiff_t column, int k,
                            int n, float* packed) {
    const float* const halves[2] = {value, gate};
    auto* to = reinterpret_cast<std::uint16_t*>(packed);
    for (int left = 0; left < n; left += kLanes)
        for (int pair = 0; 2 * pair < k; ++pair)
            for (const float* b : halves) {
                pack_pair(b, row, column, pair, k, left, n, kLanes, to);
                to += 2 * kLanes;
            }
}

/* Rows of a, lda apart, to rounded [rows, pairs of numbers]. */
static void round_rows(const float* a, std::ptrdiff_t lda, int rows, int k, std::uint16_t* rounded) {
    const int even = (k + 1) / 2 * 2;
    for (int r = 0; r < rows; ++r, a += lda, rounded += even) {
        int i = 0;
        for (; i + kLanes <= k; i += kLanes) store_rounded(rounded + i, load(a + i));
        for (; i < even; ++i) rounded[i] = i < k ? to_bf16(a[i]) : 0;
    }
}

/* sums [R][V] = a [R, pairs] panel [pairs, 2 kLanes], of whose two vectors V are wanted. */
template <int R, int V>
static inline void tile_bf16(const std::uint16_t* __restrict__ a, int pairs, const std::uint16_t* __restrict__ panel,
                             vec (&sums)[R][V]) {
    vec own[R][V]{};  // a copy that nothing else can point to stays in registers
    int i = 0;
#if defined(__aarch64__)
    for (; i + 2 <= pairs; i += 2, panel += 8 * kLanes) {  // as in `tile`
        halves columns[2][V];
        for (int j = 0; j < 2; ++j)
            for (int v = 0; v < V; ++v) columns[j][v] = load_halves(panel + (2 * j + v) * 2 * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const uint16x4_t two = vld1_u16(a + (static_cast<std::ptrdiff_t>(r) * pairs + i) * 2);
            for (int v = 0; v < V; ++v) add_products_by_lane<0>(own[r][v], columns[0][v], two);
            for (int v = 0; v < V; ++v) add_products_by_lane<1>(own[r][v], columns[1][v], two);
        }
    }
#endif
    for (; i < pairs; ++i, panel += 4 * kLanes) {
        halves columns[V];
        for (int v = 0; v < V; ++v) columns[v] = load_halves(panel + v * 2 * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const halves factor = splat_pair(a + (static_cast<std::ptrdiff_t>(r) * pairs + i) * 2);
            for (int v = 0; v < V; ++v) own[r][v] = add_products(own[r][v], factor, columns[v]);
        }
    }
    __builtin_memcpy(sums, own, sizeof own);
}
