// The CPU engine's kernels: each runs on one thread, on a range that its caller gives it. Every instruction set has a
// table of its own (kernels_*.cpp); `kernels()` returns the best that the processor has.
//
// Images are channels-last, [images, h, w, C], so tokens [images, h w, C] are the same memory. All numbers are float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

/* Where there is a table with ARM's BF16: Clang takes its instructions for single functions from release 16 on. */
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
#define PC_NEON_BF16
#endif

namespace posecrafter::cpu {

/* c = a b, by rows [begin, end) of a [M, K] and c [M, N]; b is packed, see `pack`. */
struct Product {
    const float* a;
    std::ptrdiff_t lda;
    const float* b;     // of numbers in bf16 where `bf16` says so
    const float* bias;  // [N], or nullptr; of gated ones [2 N], values' and then gates'
    const float* add;   // [M, N] with rows ldc apart, added; may be c itself; or nullptr
    float* c;
    std::ptrdiff_t ldc;
    int k, n;
    float factor = 1;    // of (a b + bias)
    bool bf16 = false;   // a's numbers are rounded to it, b's are so packed, by `pack_bf16`
    bool gated = false;  // b's columns are value and gate, `pack_gated`: c [M, N] = value gelu(gate), N of each
};

/* softmax(q k^T / sqrt(d)) v: q, out [rows, heads d] with rows ldq, ldo apart; k, v [keys, heads d], rows ldk apart. */
struct Attention {
    const float *q, *k, *v;
    float* out;
    std::ptrdiff_t ldq, ldk, ldo;
    int keys, heads, width;  // width: d
};

/* A 3x3 convolution with a border of one cell: x [images, high, wide, inputs] -> y [images, out_high, out_wide,
 * outputs].
 *
 * With stride 1 and another size than x's, x is first resized to it by nearest neighbours. With stride 2 the size is
 * x's half, rounded up. */
struct Convolution {
    const float* x;
    int images, high, wide, inputs;
    int out_high, out_wide, outputs, stride;
    const float *scale, *shift;  // [images / frames, inputs], x is read as x scale + shift; or nullptr
    int frames;
    bool silu;             // what was read goes through x / (1 + e^-x)
    const float* weights;  // `pack_convolution`
    bool winograd;         // how they are packed; stride 1 alone
    const float* bias;     // [outputs]
    const float* add;      // of y's shape, added; or nullptr
    float* y;
};

/* How a convolution is shared out: units are of one of `rows` groups of rows and of one of `columns` groups of outputs.
 */
struct Units {
    int rows, columns;
    int count() const { return rows * columns; }
};

struct Kernels {
    const char* name;
    int lanes;  // floats of a vector

    /* Floats that b [K, N] takes packed: panels two vectors wide, rows of a panel in a row, the last panel filled with
     * 0.
     */
    std::size_t (*packed_size)(int k, int n);
    /* b's element (k, n) is at b[k row + n column]. */
    void (*pack)(const float* b, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n, float* packed);
    void (*pack_gated)(const float* value, const float* gate, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n,
                       float* packed);
    /* The same with numbers rounded to bf16, in half the floats; nullptr where the processor multiplies none. longest:
     * the largest k that it takes. */
    void (*pack_bf16)(const float* b, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n, float* packed);
    void (*pack_gated_bf16)(const float* value, const float* gate, std::ptrdiff_t row, std::ptrdiff_t column, int k,
                            int n, float* packed);
    int longest_bf16;
    void (*multiply)(const Product& product, int begin, int end);

    std::size_t (*convolution_size)(int inputs, int outputs, bool winograd);
    /* Outputs [begin, begin + count), a panel's two vectors or what is left: weight [count, inputs, 3, 3]. */
    void (*pack_convolution)(const float* weight, int begin, int count, int inputs, int outputs, bool winograd,
                             float* packed);
    /* The units that the work is shared out in, what one needs, and one of them. */
    Units (*convolution_units)(const Convolution& convolution, int threads);
    std::size_t (*convolution_scratch)(const Convolution& convolution, const Units& units);
    void (*convolve)(const Convolution& convolution, int unit, const Units& units, float* scratch);

    /* Rows of x [rows, width], to mean 0 and variance 1, times weight, plus bias -> out [rows, width]. */
    void (*layer_norm)(const float* x, int rows, int width, const float* weight, const float* bias, float eps,
                       float* out);
    /* Of each channel of x [cells, width]: the mean, and the sum of squared distances from it. */
    void (*moments)(const float* x, int cells, int width, float* mean, float* squares);
    /* out [cells, width] = x scale + shift. */
    void (*scale_shift)(const float* x, int cells, int width, const float* scale, const float* shift, float* out);

    /* Floats of one head's k and v, packed: panels of k [d, some keys], then panels of v [keys, some of d]. */
    std::size_t (*packed_head_size)(int keys, int width);
    /* k and v of one head, as `attend` reads them. */
    void (*pack_head)(const Attention& attention, int head, float* packed);
    /* Rows [begin, end) of one head; whole blocks are two vectors of rows. scratch: `attend_scratch` floats. */
    void (*attend)(const Attention& attention, int head, const float* packed, int begin, int end, float* scratch);
    std::size_t (*attend_scratch)(int keys, int width);
    /* Every frame sees every frame at places [begin, end): q, k, v, out [frames, places, heads d], a frame of q, k, v
     * frame_q apart and of out frame_o, rows of places ldq, ldo apart; `keys` is the number of frames, and k, v have
     * q's strides. scratch: `temporal_scratch` floats. */
    void (*attend_temporal)(const Attention& attention, std::ptrdiff_t frame_q, std::ptrdiff_t frame_o, int begin,
                            int end, float* scratch);
    std::size_t (*temporal_scratch)(int frames, int width);
};

/* The tables that this processor can run, the best first; and the best. */
std::vector<const Kernels*> runnable_kernels();
const Kernels& kernels();

}  // namespace posecrafter::cpu
