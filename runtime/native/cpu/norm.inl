// Norms of rows, and of channels over cells.
#pragma once

#include "product.inl"

static void layer_norm(const float* x, int rows, int width, const float* weight, const float* bias, float eps,
                       float* out) {
    const float share = 1.0f / static_cast<float>(width);
    for (int row = 0; row < rows; ++row, x += width, out += width) {
        vec total{};
        for (int i = 0; i < width; i += kLanes) total += get(x + i, width - i);
        const float mean = sum(total) * share;
        vec squares{};
        for (int i = 0; i < width; i += kLanes) {
            const vec off = get(x + i, width - i) - mean;
            if (width - i >= kLanes)
                squares += off * off;
            else
                for (int j = 0; j < width - i; ++j) squares[j] += off[j] * off[j];
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) * share + eps);
        for (int i = 0; i < width; i += kLanes) {
            const int left = width - i;
            const vec y = (get(x + i, left) - mean) * scale;
            put(out + i, y * get(weight + i, left) + get(bias + i, left), left);
        }
    }
}

/* The sum over cells of a vector of channels' distances from `middle`, or of their squares. Of 256 cells at a time, so
 * that no sum has so many terms that it loses digits, and in four sums, so that none waits for the one before. */
template <bool Squares>
static inline vec sum_cells(const float* x, int cells, int width, int left, vec middle) {
    constexpr int kCells = 256;
    vec whole{};
    for (int begin = 0; begin < cells; begin += kCells) {
        const int end = begin + kCells < cells ? begin + kCells : cells;
        vec part[4]{};
        for (int cell = begin; cell < end; cell += 4)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
                if (cell + j < end) {
                    const vec off = get(x + static_cast<std::size_t>(cell + j) * width, left) - middle;
                    part[j] += Squares ? off * off : off;
                }
        whole += part[0] + part[1] + (part[2] + part[3]);
    }
    return whole;
}

static void moments(const float* x, int cells, int width, float* mean, float* squares) {
    for (int i = 0; i < width; i += kLanes) {
        const int left = width - i;
        const vec middle = sum_cells<false>(x + i, cells, width, left, vec{}) / static_cast<float>(cells);
        put(mean + i, middle, left);
        put(squares + i, sum_cells<true>(x + i, cells, width, left, middle), left);
    }
}

static void scale_shift(const float* x, int cells, int width, const float* scale, const float* shift, float* out) {
    for (int cell = 0; cell < cells; ++cell, x += width, out += width)
        for (int i = 0; i < width; i += kLanes) {
            const int left = width - i;
            put(out + i, get(x + i, left) * get(scale + i, left) + get(shift + i, left), left);
        }
}
