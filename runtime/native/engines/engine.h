/* The door between the library and whatever multiplies the matrices: one table of functions that an engine's module
 * exports. A module is a shared object beside libposecrafter.so; it opens its engine's library itself, so nothing is
 * linked that is not used. No C++ type and no exception crosses this door.
 *
 * Handles are the module's own. An engine and what was made from it are used from one thread at a time. Tensors and
 * graphs are released before their engine is closed. */
#ifndef POSECRAFTER_ENGINE_H
#define POSECRAFTER_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PC_ENGINE_ABI 4

/* The input that takes what `pack` made. */
#define PC_ENGINE_PERSON "person"

/* FLOAT16: of a person's weights in half precision. */
enum pc_engine_type { PC_ENGINE_FLOAT32 = 1, PC_ENGINE_INT64 = 2, PC_ENGINE_FLOAT16 = 3 };

typedef struct pc_engine_options {
    const char* library;   /* path of the engine's own library; NULL: the loader's search path */
    const char* device;    /* "cpu", "cuda", "tensorrt"; NULL: the engine's default */
    const char* precision; /* of the arithmetic, "fp32" or "bf16"; NULL: the engine's default */
    int32_t threads;       /* 0: the engine's default */
} pc_engine_options;

/* One of a person's weights: the graph's input, and an array of any alignment. */
typedef struct pc_engine_weight {
    const char* input;
    int type; /* PC_ENGINE_FLOAT32 or PC_ENGINE_FLOAT16 */
    const void* data;
    const int64_t* shape;
    size_t rank;
} pc_engine_weight;

/* A pass: frames, the reference among them, sampled with so many prompts of so many tokens and decoded `chunk` frames
 * at a time; images of height x width pixels, `factor` of them a side of a latent cell. */
typedef struct pc_engine_pass {
    int32_t frames, prompts, chunk, height, width, factor, tokens;
} pc_engine_pass;

/* Filled by a function that fails: a stable code and one line. */
typedef struct pc_engine_failure {
    char code[32];
    char message[1024];
} pc_engine_failure;

typedef struct pc_engine_module {
    uint32_t abi; /* PC_ENGINE_ABI */
    const char* name;

    /* NULL on failure: "engine-missing", "engine-version", "engine-device", "engine-precision". */
    void* (*open)(const pc_engine_options* options, pc_engine_failure* failure);
    void (*close)(void* engine);
    const char* (*device)(void* engine);
    /* Of several copies of a graph, the suffix of the one to take where there is one: ".cpu", or "" for the portable.
     */
    const char* (*variant)(void* engine);

    /* Loads <path>.onnx or what was compiled from it; "native" loads <path>.layers. NULL on failure: "engine-load". */
    void* (*load)(void* engine, const char* path, pc_engine_failure* failure);
    void (*unload)(void* graph);
    /* The name of input `index`; NULL behind the last one. */
    const char* (*input)(void* graph, size_t index);

    /* Copies an array of any alignment in; what is uploaded may be an input of any number of runs. NULL on failure:
     * "engine-memory". */
    void* (*upload)(void* engine, int type, const void* data, const int64_t* shape, size_t rank,
                    pc_engine_failure* failure);
    /* For an engine that computes with weights in an order of its own: a person's, of all inputs of one graph that
     * are his, as one tensor. It is its input PC_ENGINE_PERSON in any number of runs; the arrays are not read later.
     * NULL in place of the function: weights are uploaded, and inputs by their own names. NULL on failure:
     * "engine-load". */
    void* (*pack)(void* graph, const pc_engine_weight* weights, size_t count, pc_engine_failure* failure);
    /* Runs the graph on `count` named inputs; returns the tensor of one output. NULL on failure: "engine-run". */
    void* (*run)(void* graph, const char* const* names, void* const* inputs, size_t count, const char* output,
                 pc_engine_failure* failure);
    /* Copies a float32 tensor of exactly `count` numbers out. 0 on failure: "engine-run". */
    int (*download)(void* engine, void* tensor, float* data, size_t count, pc_engine_failure* failure);
    void (*release)(void* tensor);
    /* For an engine that knows: the bytes that a pass takes at its highest, of graphs in the folder `graphs`, whether
     * they are loaded or not. No graph runs. 0 on failure: "engine-load"; NULL for another engine. */
    uint64_t (*memory)(void* engine, const char* graphs, const pc_engine_pass* pass, pc_engine_failure* failure);
} pc_engine_module;

/* What a module exports, under the name "pc_engine_module_v1". */
typedef const pc_engine_module* (*pc_engine_module_function)(void);

#ifdef __cplusplus
}
#endif

#endif
