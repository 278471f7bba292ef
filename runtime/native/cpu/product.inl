// Products of matrices. b is packed into panels two vectors wide; a tile of c, kRows high and one panel wide, stays in
// registers over the whole of k. See simd.hpp for how these files are included.
#pragma once

#include "simd.hpp"
#ifdef PC_BF16
#include "bf16.inl"
#endif

constexpr int kColumns = 2 * kLanes;

static std::size_t packed_size(int k, int n) {
    return static_cast<std::size_t>((n + kColumns - 1) / kColumns) * kColumns * static_cast<std::size_t>(k);
}

static void pack(const float* b, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n, float* packed) {
    for (int left = 0; left < n; left += kColumns)
        for (int i = 0; i < k; ++i)
            for (int j = 0; j < kColumns; ++j) *packed++ = left + j < n ? b[i * row + (left + j) * column] : 0.0f;
}

/* A panel is a vector of values' columns and a vector of the same columns' gates. */
static void pack_gated(const float* value, const float* gate, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n,
                       float* packed) {
    const float* const halves[2] = {value, gate};
    for (int left = 0; left < n; left += kLanes)
        for (int i = 0; i < k; ++i)
            for (const float* b : halves)
                for (int j = 0; j < kLanes; ++j) *packed++ = left + j < n ? b[i * row + (left + j) * column] : 0.0f;
}

/* sums [R][V] = a [R, k] panel [k, kColumns], of whose two vectors V are wanted. */
template <int R, int V>
static inline void tile(const float* __restrict__ a, std::ptrdiff_t lda, const float* __restrict__ panel, int k,
                        vec (&sums)[R][V]) {
    vec own[R][V]{};  // a copy that nothing else can point to stays in registers
    int i = 0;
#if defined(__aarch64__)
    for (; i + 2 <= k; i += 2, panel += 2 * kColumns) {
        vec columns[2][V];
        for (int j = 0; j < 2; ++j)
            for (int v = 0; v < V; ++v) columns[j][v] = load(panel + j * kColumns + v * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const pair factors = load_pair(a + r * lda + i);
            for (int j = 0; j < 2; ++j)
                for (int v = 0; v < V; ++v) own[r][v] += factors[j] * columns[j][v];
        }
    }
#endif
    for (; i < k; ++i, panel += kColumns) {
        vec columns[V];
        for (int v = 0; v < V; ++v) columns[v] = load(panel + v * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const vec factor = splat(a[r * lda + i]);
            for (int v = 0; v < V; ++v) own[r][v] += factor * columns[v];
        }
    }
    __builtin_memcpy(sums, own, sizeof own);
}

static inline void put(float* p, vec x, int count) {
    if (count >= kLanes)
        store(p, x);
    else
        for (int i = 0; i < count; ++i) p[i] = x[i];
}

static inline vec get(const float* p, int count) {
    if (count >= kLanes) return load(p);
    vec x{};
    for (int i = 0; i < count; ++i) x[i] = p[i];
    return x;
}

/* What becomes of a tile's sums: rows from `begin` on of the panel's columns. */
template <int R, int V>
static inline void finish(const Product& product, const vec (&sums)[R][V], int begin, int panel) {
    // What the loops read is copied first: for all the compiler knows, they write over the product itself.
    const std::ptrdiff_t ldc = product.ldc;
    const int column = panel * (product.gated ? kLanes : kColumns), left = product.n - column;
    float* c = product.c + begin * ldc + column;
    if constexpr (V == 2)
        if (product.gated) {
            const vec value = get(product.bias + column, left), gate = get(product.bias + product.n + column, left);
            for (int r = 0; r < R; ++r, c += ldc) put(c, (sums[r][0] + value) * gelu(sums[r][1] + gate), left);
            return;
        }
    const float factor = product.factor;
    const float* add = product.add ? product.add + begin * ldc + column : nullptr;
    vec bias[V]{};
    for (int v = 0; v < V && product.bias; ++v) bias[v] = get(product.bias + column + v * kLanes, left - v * kLanes);
    if (left < V * kLanes) {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) {
                const std::ptrdiff_t place = r * ldc + v * kLanes;
                vec y = (sums[r][v] + bias[v]) * factor;
                if (add) y += get(add + place, left - v * kLanes);
                put(c + place, y, left - v * kLanes);
            }
        return;
    }
    for (int r = 0; r < R; ++r, c += ldc) {
        for (int v = 0; v < V; ++v) {
            vec y = (sums[r][v] + bias[v]) * factor;
            if (add) y += load(add + v * kLanes);
            store(c + v * kLanes, y);
        }
        if (add) add += ldc;
    }
}

/* Rows as `multiply` passes them on: a's own, or of a block that was rounded first. */
struct Rows {
    const Product& product;
    const std::uint16_t* rounded;  // [rows of the block, 2 pairs], or nullptr
    int top, pairs;

    template <int R, int V>
    void run(int begin, int panel) const {
        vec sums[R][V];
        const std::ptrdiff_t k = product.k;
#ifdef PC_BF16
        if (rounded) {
            const auto* b = reinterpret_cast<const std::uint16_t*>(product.b);
            tile_bf16<R, V>(rounded + (begin - top) * 2 * pairs, pairs,
                            b + panel * static_cast<std::ptrdiff_t>(pairs) * 2 * kColumns, sums);
            finish(product, sums, begin, panel);
            return;
        }
#endif
        tile(product.a + begin * product.lda, product.lda, product.b + panel * k * kColumns, product.k, sums);
        finish(product, sums, begin, panel);
    }

    template <int R>
    void run_some(int begin, int count, int panel, bool narrow) const {
        if constexpr (R > 0) {
            if (count < R)
                run_some<R - 1>(begin, count, panel, narrow);
            else if (narrow)
                run<R, 1>(begin, panel);
            else
                run<R, 2>(begin, panel);
        }
    }
};

/* By blocks of rows that stay in the second-level cache while all panels pass by. */
static void multiply(const Product& product, int begin, int end) {
    int block = 8 * kRows;
    const int width = product.gated ? kLanes : kColumns, panels = (product.n + width - 1) / width;
#ifdef PC_BF16
    static thread_local std::uint16_t rounded[kRounded];  // too many for a host's small stack
    const int pairs = (product.k + 1) / 2, fit = kRounded / (2 * pairs) / kRows * kRows;
    if (product.bf16 && fit < block) block = fit;
#endif
    for (int top = begin; top < end; top += block) {
        const int bottom = top + block < end ? top + block : end;
#ifdef PC_BF16
        if (product.bf16) round_rows(product.a + top * product.lda, product.lda, bottom - top, product.k, rounded);
        const Rows rows{product, product.bf16 ? rounded : nullptr, top, pairs};
#else
        const Rows rows{product, nullptr, top, 0};
#endif
        for (int panel = 0; panel < panels; ++panel) {
            const bool narrow = !product.gated && product.n - panel * kColumns <= kLanes;
            for (int row = top; row < bottom; row += kRows)
                rows.run_some<kRows>(row, bottom - row < kRows ? bottom - row : kRows, panel, narrow);
        }
    }
}
