// Products of numbers rounded to bf16, with sums in float32: for processors that multiply two at a time (AVX512-BF16).
// b is packed by pairs of rows: a panel's row is 2 kLanes columns, each the two numbers of its pair.
#pragma once

#include "simd.hpp"

/* Numbers that a product rounds at a time: 48 rows of 5120, or kRows of the longest k. */
constexpr int kRounded = 240 * 1024;
constexpr int kLongest = kRounded / kRows - 2;

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
        for (; i + kLanes <= k; i += kLanes)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded + i),
                                reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(a + i))));
        for (; i < even; ++i) rounded[i] = i < k ? to_bf16(a[i]) : 0;
    }
}

/* sums [R][V] = a [R, pairs] panel [pairs, 2 kLanes], of whose two vectors V are wanted. */
template <int R, int V>
static inline void tile_bf16(const std::uint16_t* __restrict__ a, int pairs, const std::uint16_t* __restrict__ panel,
                             vec (&sums)[R][V]) {
    vec own[R][V]{};  // a copy that nothing else can point to stays in registers
    for (int i = 0; i < pairs; ++i, panel += 4 * kLanes) {
        __m512bh columns[V];
        for (int v = 0; v < V; ++v) columns[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + v * 2 * kLanes));
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            int two;
            __builtin_memcpy(&two, a + (static_cast<std::ptrdiff_t>(r) * pairs + i) * 2, 4);
            const auto factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
            for (int v = 0; v < V; ++v) own[r][v] = _mm512_dpbf16_ps(own[r][v], factor, columns[v]);
        }
    }
    __builtin_memcpy(sums, own, sizeof own);
}
