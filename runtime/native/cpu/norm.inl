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

/* By four vectors of channels at a time, twice over cells that are then in the first-level cache. */
static void moments(const float* x, int cells, int width, float* mean, float* squares) {
    const float share = 1.0f / static_cast<float>(cells);
    for (int i = 0; i < width; i += kLanes) {
        const int left = width - i;
        vec total[4]{}, around[4]{};
        int cell = 0;
        for (; cell + 4 <= cells; cell += 4)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) total[j] += get(x + static_cast<std::size_t>(cell + j) * width + i, left);
        for (; cell < cells; ++cell) total[0] += get(x + static_cast<std::size_t>(cell) * width + i, left);
        const vec middle = (total[0] + total[1] + total[2] + total[3]) * share;
        for (cell = 0; cell + 4 <= cells; cell += 4)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const vec off = get(x + static_cast<std::size_t>(cell + j) * width + i, left) - middle;
                around[j] += off * off;
            }
        for (; cell < cells; ++cell) {
            const vec off = get(x + static_cast<std::size_t>(cell) * width + i, left) - middle;
            around[0] += off * off;
        }
        put(mean + i, middle, left);
        put(squares + i, around[0] + around[1] + around[2] + around[3], left);
    }
}

static void scale_shift(const float* x, int cells, int width, const float* scale, const float* shift, float* out) {
    for (int cell = 0; cell < cells; ++cell, x += width, out += width)
        for (int i = 0; i < width; i += kLanes) {
            const int left = width - i;
            put(out + i, get(x + i, left) * get(scale + i, left) + get(shift + i, left), left);
        }
}
