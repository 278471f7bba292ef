// 3x3 convolutions with a border of one cell, over images that are normed and activated as they are read.
//
// winograd: F(4x4, 3x3), Toom and Cook's construction at the points 0, 1, -1, 2, -2 and infinity: a tile of 4x4 outputs
// is 36 products of transformed inputs instead of 144. The transforms are sums of whole channels' vectors; what remains
// are 36 products of matrices [tiles, inputs] [inputs, outputs]. direct: one such product over all taps, or one a tap.
#pragma once

#include "product.inl"

constexpr int kPoints = 36;
constexpr int kPadding = kLanes;  // floats between two points' matrices: without, their rows would share cache sets

static inline int whole(int channels) {
    return (channels + kLanes - 1) / kLanes * kLanes;
}

/* Channels of a cell as it is copied for the products: few ones lie side by side, others begin a vector. */
static inline int copied(int inputs, bool winograd) {
    return inputs < kLanes && !winograd ? inputs : whole(inputs);
}

/* Products that a direct convolution is: one over all taps while a panel of it stays in the second-level cache. */
static inline int direct_products(int inputs) {
    return 9 * copied(inputs, false) * kColumns * static_cast<int>(sizeof(float)) <= 256 * 1024 ? 1 : 9;
}

static std::size_t convolution_size(int inputs, int outputs, bool winograd) {
    return (winograd ? kPoints : 9) * packed_size(copied(inputs, winograd), outputs);
}

/* One channel's taps of a panel, [kColumns] each, at Winograd's points: t[y][x] = sum of kTaps[y] kTaps[x] w. */
static void taps_to_points(const double (&w)[9][kColumns], std::size_t point, float* to) {
    static const double kTaps[6][3] = {{1.0 / 4, 0, 0},
                                       {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                       {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                       {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                       {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                       {0, 0, 1}};
    for (int y = 0; y < 6; ++y) {
        const double* t = kTaps[y];
        double half[3][kColumns];
        for (int x = 0; x < 3; ++x)
            for (int j = 0; j < kColumns; ++j) half[x][j] = t[0] * w[x][j] + t[1] * w[3 + x][j] + t[2] * w[6 + x][j];
        for (int x = 0; x < 6; ++x, to += point) {
            const double* u = kTaps[x];
            for (int j = 0; j < kColumns; ++j)
                to[j] = static_cast<float>(u[0] * half[0][j] + u[1] * half[1][j] + u[2] * half[2][j]);
        }
    }
}

/* One panel of outputs, from `begin` on: weight [count, inputs, 3, 3]. What it has too many stays 0. */
static void pack_convolution(const float* weight, int begin, int count, int inputs, int outputs, bool winograd,
                             float* packed) {
    const int channels = copied(inputs, winograd);
    const std::size_t row = kColumns, matrix = packed_size(channels, outputs);
    const bool joined = !winograd && direct_products(inputs) == 1;
    // One product over all taps has their rows one after another in each panel; several have a matrix each.
    const std::size_t panel = (joined ? 9 : 1) * static_cast<std::size_t>(channels) * row;
    const std::size_t tap = joined ? static_cast<std::size_t>(channels) * row : matrix;
    float* to = packed + static_cast<std::size_t>(begin / kColumns) * panel;
    double w[9][kColumns]{};
    for (int i = 0; i < channels; ++i, to += row) {
        for (int j = 0; j < count; ++j)
            for (int t = 0; t < 9; ++t)
                w[t][j] = i < inputs ? weight[(static_cast<std::size_t>(j) * inputs + i) * 9 + t] : 0;
        if (winograd)
            taps_to_points(w, tap, to);
        else
            for (int t = 0; t < 9; ++t)
                for (int j = 0; j < kColumns; ++j) to[t * tap + j] = static_cast<float>(w[t][j]);
    }
}

/* Rows of the unit's work: of tiles, or of output cells. */
static inline int convolution_rows(const Convolution& c) {
    return c.images * (c.winograd ? (c.out_high + 3) / 4 : c.out_high);
}

static inline int row_tiles(const Convolution& c) {
    return c.winograd ? (c.out_wide + 3) / 4 : c.out_wide;
}

/* Cells of a padded row of the image as it is read. */
static inline int row_cells(const Convolution& c) {
    return c.winograd ? 4 * row_tiles(c) + 2 : c.stride * (c.out_wide - 1) + 3;
}

/* Groups of rows so many that a unit's matrices stay in the second-level cache, where two tiles of products or more do.
 * Where there are few rows for each thread, as many groups of rows and of outputs as leave the last thread least to do:
 * groups of outputs read their rows again, which is a fifth of the work. */
static Units convolution_units(const Convolution& c, int threads) {
    constexpr int kFloats = 160 * 1024, kFew = 4;
    const int tile = c.winograd ? kPoints * (whole(c.inputs) + c.outputs) : 9 * copied(c.inputs, false) + c.outputs;
    int tiles = kFloats / tile;
    tiles = tiles < 2 * kRows ? 2 * kRows : tiles > 96 ? 96 : tiles;
    const int rows = convolution_rows(c), all = rows * row_tiles(c), least = (all + tiles - 1) / tiles;
    const int even = (least + threads - 1) / threads * threads;
    Units best{even < rows ? even : rows, 1};
    if (threads == 1 || rows > kFew * threads) return best;
    const int panels = static_cast<int>(packed_size(1, c.outputs)) / kColumns;
    const int most = panels < threads ? panels : threads;
    float shortest = 0;
    for (int columns = 1; columns <= most; ++columns)
        for (int groups = least < rows ? least : rows; groups <= rows; ++groups) {
            const int rounds = (groups * columns + threads - 1) / threads, own = (rows + groups - 1) / groups;
            const float work = rounds * own * (0.2f + 0.8f * ((panels + columns - 1) / columns) / panels);
            if (shortest == 0 || work < shortest) shortest = work, best = {groups, columns};
        }
    return best;
}

static inline int unit_rows(const Convolution& c, const Units& units) {
    return (convolution_rows(c) + units.rows - 1) / units.rows;
}

static std::size_t convolution_scratch(const Convolution& c, const Units& units) {
    const std::size_t channels = copied(c.inputs, c.winograd);
    const std::size_t panels = packed_size(1, c.outputs) / kColumns;
    const std::size_t columns = (panels + units.columns - 1) / units.columns * kColumns;
    const std::size_t tiles = static_cast<std::size_t>(unit_rows(c, units)) * row_tiles(c);
    const std::size_t band = (c.winograd ? 6 : 3) * static_cast<std::size_t>(row_cells(c)) * channels + 2 * kLanes;
    if (!c.winograd) return band + tiles * 9 * channels + kLanes;
    return band + kPoints * (tiles * (channels + columns) + 2 * kPadding);
}

/* A row of an image that is neither normed nor resized: its numbers lie in the band as they lie there. */
static void fill_flat(const Convolution& c, const float* row, int cells, float* band) {
    const int count = c.wide * c.inputs, end = cells * c.inputs;
    int i = 0;
    for (; i < c.inputs; ++i) band[i] = 0;
    float* inside = band + c.inputs;
    for (i = 0; i < count; i += kLanes) {
        const vec value = get(row + i, count - i);
        store(inside + i, c.silu ? silu(value) : value);
    }
    for (i = c.inputs + count; i < end; ++i) band[i] = 0;
}

/* Rows [top, top + count) of the padded image as it is read, to band [count, row_cells, copied(inputs)]; whole vectors
 * are written, so the last cell's may reach behind the band. */
static void fill_band(const Convolution& c, int image, int top, int count, float* band) {
    const int channels = copied(c.inputs, c.winograd), cells = row_cells(c);
    const int seen_high = c.stride == 1 ? c.out_high : c.high, seen_wide = c.stride == 1 ? c.out_wide : c.wide;
    const float* source = c.x + static_cast<std::size_t>(image) * c.high * c.wide * c.inputs;
    const std::size_t normed = static_cast<std::size_t>(image / c.frames) * c.inputs;
    const bool flat = !c.scale && channels == c.inputs && seen_high == c.high && seen_wide == c.wide;
    for (int row = top - 1; row < top - 1 + count; ++row) {
        if (flat && row >= 0 && row < seen_high) {
            fill_flat(c, source + static_cast<std::size_t>(row) * c.wide * c.inputs, cells, band);
            band += static_cast<std::size_t>(cells) * channels;
            continue;
        }
        for (int cell = -1; cell < cells - 1; ++cell, band += channels) {
            if (row < 0 || row >= seen_high || cell < 0 || cell >= seen_wide) {
                for (int i = 0; i < channels; i += kLanes) store(band + i, vec{});
                continue;
            }
            const int y = seen_high == c.high ? row : row * c.high / seen_high;
            const int x = seen_wide == c.wide ? cell : cell * c.wide / seen_wide;
            const float* from = source + (static_cast<std::size_t>(y) * c.wide + x) * c.inputs;
            for (int i = 0; i < channels; i += kLanes) {
                const int left = c.inputs - i;
                vec value = get(from + i, left);
                if (c.scale) value = value * get(c.scale + normed + i, left) + get(c.shift + normed + i, left);
                store(band + i, c.silu ? silu(value) : value);
            }
        }
    }
}

/* B^T d of six values. */
static inline void to_points(const vec (&d)[6], vec (&t)[6]) {
    const vec even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    const vec even2 = d[4] - d[2], odd2 = 2.0f * (d[3] - d[1]);
    t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = even2 + odd2;
    t[4] = even2 - odd2;
    t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

/* A^T m of six values. */
static inline void from_points(const vec (&m)[6], vec (&y)[4]) {
    const vec sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum1 + sum2;
    y[1] = difference1 + 2.0f * difference2;
    y[2] = sum1 + 4.0f * sum2;
    y[3] = difference1 + 8.0f * difference2 + m[5];
}

/* The tile of a band that begins at `cells`, to row `out` of each point's matrix. */
static void tile_to_points(const float* cells, int row, int channels, float* out, std::size_t point) {
    for (int i = 0; i < channels; i += kLanes) {
        vec half[6][6];
        for (int x = 0; x < 6; ++x) {
            vec d[6], t[6];
            for (int y = 0; y < 6; ++y) d[y] = load(cells + y * row + x * channels + i);
            to_points(d, t);
            for (int y = 0; y < 6; ++y) half[y][x] = t[y];
        }
        for (int y = 0; y < 6; ++y) {
            vec t[6];
            to_points(half[y], t);
            for (int x = 0; x < 6; ++x) store(out + (6 * y + x) * point + i, t[x]);
        }
    }
}

static inline void put_output(const Convolution& c, std::size_t place, int channel, vec value) {
    const int left = c.outputs - channel;
    if (c.add) value += get(c.add + place + channel, left);
    put(c.y + place + channel, value, left);
}

/* What a unit makes: rows [begin, end) of the outputs [first, last), whole panels but for the last. */
struct Piece {
    int begin, end, first, last;
};

/* Row `in` of each point's matrix, to the piece's outputs whose first cell is (top, left) of the image. */
static void points_to_tile(const Convolution& c, const Piece& piece, const float* in, std::size_t point, int image,
                           int top, int left) {
    const int high = c.out_high - top < 4 ? c.out_high - top : 4, wide = c.out_wide - left < 4 ? c.out_wide - left : 4;
    for (int i = piece.first; i < piece.last; i += kLanes, in += kLanes) {
        vec half[4][6];
        for (int x = 0; x < 6; ++x) {
            vec m[6], y[4];
            for (int p = 0; p < 6; ++p) m[p] = load(in + (6 * p + x) * point);
            from_points(m, y);
            for (int p = 0; p < 4; ++p) half[p][x] = y[p];
        }
        const vec bias = get(c.bias + i, c.outputs - i);
        for (int y = 0; y < high; ++y) {
            vec values[4];
            from_points(half[y], values);
            const std::size_t row = static_cast<std::size_t>(image) * c.out_high + top + y;
            for (int x = 0; x < wide; ++x)
                put_output(c, (row * c.out_wide + left + x) * c.outputs, i, values[x] + bias);
        }
    }
}

static void convolve_winograd(const Convolution& c, const Piece& piece, float* scratch, int limit) {
    const int begin = piece.begin, end = piece.end, channels = whole(c.inputs);
    const int columns = static_cast<int>(packed_size(1, piece.last - piece.first));
    const int high = (c.out_high + 3) / 4, wide = row_tiles(c), tiles = (end - begin) * wide,
              row = row_cells(c) * channels;
    const std::size_t most = static_cast<std::size_t>(limit) * wide;
    const std::size_t point_in = most * channels + kPadding, point_out = most * columns + kPadding;
    float *band = scratch, *in = band + 6 * row, *out = in + kPoints * point_in;
    for (int r = begin; r < end; ++r) {
        fill_band(c, r / high, r % high * 4, 6, band);
        for (int x = 0; x < wide; ++x)
            tile_to_points(band + 4 * x * channels, row, channels,
                           in + (static_cast<std::size_t>(r - begin) * wide + x) * channels, point_in);
    }
    for (int p = 0; p < kPoints; ++p) {
        const Product product{
            .a = in + p * point_in,
            .lda = channels,
            .b = c.weights + p * packed_size(channels, c.outputs) + piece.first * std::ptrdiff_t(channels),
            .c = out + p * point_out,
            .ldc = columns,
            .k = channels,
            .n = columns};
        multiply(product, 0, tiles);
    }
    for (int r = begin; r < end; ++r)
        for (int x = 0; x < wide; ++x)
            points_to_tile(c, piece, out + (static_cast<std::size_t>(r - begin) * wide + x) * columns, point_out,
                           r / high, r % high * 4, 4 * x);
}

static void convolve_direct(const Convolution& c, const Piece& piece, float* scratch) {
    const int begin = piece.begin, end = piece.end;
    const int channels = copied(c.inputs, false), cells = row_cells(c), wide = c.out_wide;
    const int products = direct_products(c.inputs), rows = (end - begin) * wide, k = 9 / products * channels;
    float *band = scratch, *taps = band + static_cast<std::size_t>(3) * cells * channels + 2 * kLanes;
    // Of one product a row holds all taps, three beside each other at a time; of nine each has a matrix of its own.
    // Vectors are copied whole: what they write too far is written again, or lies behind the last row.
    const int beside = products == 1 ? 3 : 1;
    const std::size_t tap = products == 1 ? channels : static_cast<std::size_t>(rows) * channels;
    for (int r = begin; r < end; ++r) {
        fill_band(c, r / c.out_high, r % c.out_high * c.stride, 3, band);
        for (int x = 0; x < wide; ++x)
            for (int t = 0; t < 9; t += beside) {
                const float* from = band + (static_cast<std::size_t>(t / 3) * cells + x * c.stride + t % 3) * channels;
                float* to = taps + (static_cast<std::size_t>(r - begin) * wide + x) * k + t * tap;
                for (int i = 0; i < beside * channels; i += kLanes) store(to + i, load(from + i));
            }
    }
    const std::size_t first = static_cast<std::size_t>(begin) * wide * c.outputs + piece.first;
    for (int p = 0; p < products; ++p) {
        const float* add = p ? c.y + first : c.add ? c.add + first : nullptr;
        const Product product{.a = taps + p * tap,
                              .lda = k,
                              .b = c.weights + p * packed_size(k, c.outputs) + piece.first * std::ptrdiff_t(k),
                              .bias = p ? nullptr : c.bias + piece.first,
                              .add = add,
                              .c = c.y + first,
                              .ldc = c.outputs,
                              .k = k,
                              .n = piece.last - piece.first};
        multiply(product, 0, rows);
    }
}

/* One of the units that the work is shared out in. */
static void convolve(const Convolution& c, int unit, const Units& units, float* scratch) {
    const std::ptrdiff_t rows = convolution_rows(c), panels = packed_size(1, c.outputs) / kColumns;
    const int row = unit / units.columns, column = unit % units.columns;
    const auto part = [](std::ptrdiff_t all, int index, int parts) { return static_cast<int>(all * index / parts); };
    const int behind = part(panels, column + 1, units.columns) * kColumns;
    const Piece piece{part(rows, row, units.rows), part(rows, row + 1, units.rows),
                      part(panels, column, units.columns) * kColumns, behind < c.outputs ? behind : c.outputs};
    if (c.winograd)
        convolve_winograd(c, piece, scratch, unit_rows(c, units));
    else
        convolve_direct(c, piece, scratch);
}
