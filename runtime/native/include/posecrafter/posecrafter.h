/* PoseCrafter: a bundle and poses in, frames of a video out. The C interface of libposecrafter.so.
 *
 *     pc_session *session = NULL;
 *     pc_poses *poses = NULL;
 *     pc_request request;
 *     pc_request_init(&request);
 *     if (pc_open("bundle", NULL, &session) == PC_OK && pc_poses_read("target.json", 0, 0, &poses) == PC_OK) {
 *         pc_poses_view(poses, &request.poses);
 *         ... allocate request.poses.frames * height * width * 3 bytes (pc_describe tells the size) ...
 *         pc_render(session, &request, &output);
 *     }
 *     if (pc_last_error_code()[0]) fprintf(stderr, "%s: %s\n", pc_last_error_code(), pc_last_error_message());
 *     pc_poses_free(&poses);
 *     pc_close(&session);
 *
 * OWNERSHIP  What a function stores through a `**` argument belongs to the caller, who gives it back to the function
 *     named beside it; that function also sets the caller's pointer to NULL, so that a later use of it is refused
 *     instead of undefined. Everything else that is passed in is borrowed for the length of the call.
 * THREADS  A session is used by one thread at a time, any thread; a second call while one runs, also from inside a
 *     callback, is refused with "session-busy". Different sessions run in parallel. A pc_poses and a pc_planned do not
 *     change once made and may be read from many threads.
 * ERRORS  Every function that can fail returns a pc_status. The stable code and a line that says what to do are kept
 *     for each thread until its next call. No C++ exception leaves the library. A failed call changes nothing but the
 *     contents of the output buffers it was given.
 * SHAPES  M target frames, N training frames, H W pixels, h = H / factor, w = W / factor, L latent channels, T text
 *     tokens, D their width, K = 130 key points. Arrays are dense and row-major, the last index fastest.
 * VERSIONS  Structures begin with their size, set by their _init function, and grow only at their end: a program built
 *     against this header runs with every later library of the same major version. What is `reserved` is 0, and once it
 *     has a name 0 means what it did before: the size does not tell of it. */
#ifndef POSECRAFTER_H
#define POSECRAFTER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PC_API __attribute__((visibility("default")))

/* What kind of error it was. The code (pc_last_error_code) is finer. */
typedef enum pc_status {
    PC_OK = 0,
    PC_REQUEST_ERROR = 1, /* what was asked for is out of range, contradicts itself, or was cancelled */
    PC_BUNDLE_ERROR = 2,  /* a bundle is incomplete, altered, or of another format version */
    PC_ENGINE_ERROR = 3,  /* an engine is missing, cannot load a graph, or produced numbers that are not finite */
    PC_POSE_ERROR = 4,    /* key points are missing, malformed, or do not fit the request */
    PC_INTERNAL_ERROR = 5 /* memory ran out, or a defect of this library */
} pc_status;

/* The release, "0.1.0". Never NULL. */
PC_API const char* pc_version(void);

/* The code ("bundle-hash", "steps-range", "cancelled", ...: the same as Python's) and the message of this thread's last
 * call; "" after one that went well. Never NULL; valid until this thread's next call. */
PC_API const char* pc_last_error_code(void);
PC_API const char* pc_last_error_message(void);

/* ---- Sessions: an open bundle on an engine ------------------------------------------------------------------- */

typedef struct pc_session pc_session;

typedef struct pc_options {
    uint32_t struct_size;
    int32_t threads;            /* CPU threads; 0: the engine's default, native's is one a usable core */
    const char* engine;         /* "native", "onnxruntime", "openvino", "tensorrt", or the path of a module; NULL or
                                   "auto": the first that opens of native, where the processor has AVX2, the bundle has
                                   layers and neither a library nor another device is named, and of openvino and
                                   onnxruntime, in this order on a processor that multiplies bfloat16, in the other
                                   elsewhere */
    const char* engine_library; /* the engine's own library, "/.../libonnxruntime.so.1"; NULL: the loader's path; native
                                   has none */
    const char* device;         /* "cpu"; for onnxruntime also "cuda", "tensorrt"; for tensorrt "cuda" or "cuda:1", ...;
                                   NULL: the engine's default */
    const char* precision; /* of native's and openvino's arithmetic, "fp32" or "bf16"; NULL: the engine's default */
} pc_options;

static inline void pc_options_init(pc_options* options) {
    memset(options, 0, sizeof *options);
    options->struct_size = (uint32_t)sizeof *options;
}

/* Verify and open a bundle folder. options: NULL for the defaults. The session is given back to pc_close.
 * Codes: "bundle-missing", "bundle-manifest", "bundle-format", "bundle-path", "bundle-file-missing",
 * "bundle-file-unlisted", "bundle-hash", "bundle-person", "pack-weights" (of a bundle exported with --shared),
 * "engine-unknown", "engine-missing", "engine-version" (the engine's library is too old), "engine-device",
 * "engine-precision", "engine-load" (native, of a bundle without layers), "engine-memory", "null-argument",
 * "struct-size". Graphs are loaded when they are first needed. */
PC_API pc_status pc_open(const char* bundle, const pc_options* options, pc_session** session);

/* Free the session and set *session to NULL. NULL in *session is not an error. Code: "session-busy". */
PC_API pc_status pc_close(pc_session** session);

/* Render this person from the next call on. Only a bundle exported with --shared holds more than one: its graphs take a
 * person's weights as inputs, and a pack (a folder that `posecrafter export --person` writes) holds them.
 *
 * person: a name in the bundle's persons/, else the path of a pack's folder anywhere, made on the same base; borrowed.
 *     NULL: the bundle's own person, as after pc_open (for a merged bundle, its only one).
 * MEMORY  The first call for a person verifies the pack, reads it and copies its weights to the engine; a later call
 * with the same text binds what is there, so that going from A to B and back costs nothing and renders A to the bit,
 *     whatever became of the folder. Everybody who was loaded stays in memory until he is unloaded or the session is
 * closed: his weights (a low-rank pack's are multiplied out to full matrices), latents and inverted frames. AFTERWARDS
 * pc_describe tells of this person (width, height, training_frames, fps, prompt), and requests are planned for him:
 * read it again before buffers are sized. Plans that were made before are not changed. After a refusal the session
 * renders whom it rendered before. Codes: "bundle-merged" (a merged bundle, and person is not NULL), "pack-missing"
 * (nobody of that name, or a pack that lacks a file), "pack-format", "pack-hash" (a file was altered), "pack-base"
 * (made on another base), "pack-weights" (tensors that the graphs do not take, or not finite), "bundle-file-missing" (a
 * low-rank pack, and no base's matrices in the bundle), "bundle-person", "poses-json", "engine-memory",
 * "null-argument", "session-busy". */
PC_API pc_status pc_load_person(pc_session* session, const char* person);

/* Free the memory of somebody who was loaded by this text. If he is the one rendered now, the bundle's own person is
 * from then on. Texts of his pc_description are not valid any more. Nothing happens where nobody of that text is
 * loaded; the next pc_load_person reads his pack again. Codes: "null-argument", "session-busy". */
PC_API pc_status pc_unload_person(pc_session* session, const char* person);

/* What an open bundle is, with the person it renders now. Texts are valid until the session is closed. */
typedef struct pc_description {
    uint32_t struct_size;
    int32_t width, height;   /* W, H of the frames, in pixels */
    int32_t latent_channels; /* L */
    int32_t latent_factor;   /* pixels a latent cell */
    int32_t text_tokens;     /* T */
    int32_t text_width;      /* D */
    int32_t training_frames; /* N */
    int32_t window;          /* most target frames in one pass */
    int32_t steps;           /* defaults of a request */
    double guidance, control_scale;
    double fps;                  /* of the training video */
    const char* pose_style;      /* "v1.1", "v1.0", "v1.1-small" */
    const char* prompt;          /* the one that the person was tuned with */
    const char *engine, *device; /* what the session runs on */
    int32_t sampling_steps;      /* default of a request that gives no steps either; never 0 */
    int32_t reserved;
} pc_description;

static inline void pc_description_init(pc_description* description) {
    memset(description, 0, sizeof *description);
    description->struct_size = (uint32_t)sizeof *description;
}

PC_API pc_status pc_describe(pc_session* session, pc_description* description);

/* ---- Poses ---------------------------------------------------------------------------------------------------- */

/* Key points of one person, frame by frame. Layout of the K = 130: 18 body points (OpenPose order), 21 of the person's
 * left hand, 21 of the right hand, 68 face points (iBUG order), two pupils (the person's right, then left). */
typedef struct pc_key_points {
    int32_t frames;        /* M */
    int32_t width, height; /* the canvas that x and y are pixels of; any size, it is framed to the bundle's */
    const float* points;   /* [M, 130, 3]: x, y (x right, y down; pixel i covers i..i+1), score (0: absent) */
} pc_key_points;

typedef struct pc_poses pc_poses;

/* Read OpenPose JSON: a file with a list of frames, a file with one frame, or a folder with a file for each frame.
 * Bodies of 18 or 25 points, faces of 68 or 70, pixels or 0..1. Of several people in a frame the one who covers the
 * largest area is taken. width, height: the canvas, for files that name none; else 0. Given back to pc_poses_free.
 * Codes: "poses-missing", "poses-json", "poses-not-finite", "null-argument". */
PC_API pc_status pc_poses_read(const char* path, int32_t width, int32_t height, pc_poses** poses);

/* The same from `length` bytes of JSON text: a frame or a list of frames. */
PC_API pc_status pc_poses_parse(const char* text, size_t length, int32_t width, int32_t height, pc_poses** poses);

/* Fill *key_points with a view of the poses, valid until they are freed. */
PC_API pc_status pc_poses_view(const pc_poses* poses, pc_key_points* key_points);

/* Free the poses and set *poses to NULL. */
PC_API void pc_poses_free(pc_poses** poses);

/* ---- Requests ------------------------------------------------------------------------------------------------- */

#define PC_DEFAULT (-1) /* in a number of a request: as the bundle says */

typedef enum pc_inversion {
    PC_INVERT_REFERENCE = 0, /* one frame is inverted, once for each training frame: fastest */
    PC_INVERT_TARGET = 1,    /* M + 1 copies are inverted, each seeing its own target pose */
    PC_INVERT_NONE = 2       /* Gaussian noise, one draw for all frames */
} pc_inversion;

enum pc_region { PC_FACE = 1, PC_LEFT_HAND = 2, PC_RIGHT_HAND = 4, PC_ALL_REGIONS = 7 };

typedef enum pc_warp { PC_WARP_NEAREST = 0, PC_WARP_BILINEAR = 1 } pc_warp;

/* One video to render. Everything it points to is borrowed for the length of the call. */
typedef struct pc_request {
    uint32_t struct_size;
    int32_t image_frames;          /* M of control_images; 0 without */
    pc_key_points poses;           /* the target; frames 0 where only control images are given */
    const uint8_t* control_images; /* ready pose maps [M, H, W, 3] RGB at the bundle's size in place of drawn ones */
    int32_t reference;             /* index of the training frame; PC_DEFAULT: the nearest to the poses. Must be given
                                      where there are only control images, which can neither be compared nor edited */
    int32_t steps;                 /* 1..1000 solver steps, for inversion and, where sampling_steps says nothing, for
                                      sampling; or PC_DEFAULT */
    double guidance;               /* 0..50, or PC_DEFAULT; 1 evaluates one prompt only */
    double control_scale;          /* 0..4, or PC_DEFAULT */
    const float* prompt;           /* text embedding [T, D] in place of the trained prompt's; NULL: the stored one */
    const float* negative_prompt;  /* text embedding [T, D] in place of the empty prompt's; NULL: the stored one */
    int32_t inversion;             /* a pc_inversion */
    uint32_t edit;                 /* pc_region bits: whose initial latents are moved with the pose */
    int32_t warp;                  /* a pc_warp: how they are resampled */
    int32_t window;                /* target frames a pass, or PC_DEFAULT for as many as the bundle allows */
    int32_t decode_chunk;          /* frames a pass of the VAE decoder: changes memory, not the picture */
    uint64_t seed;                 /* of the noise with PC_INVERT_NONE */
    uint64_t memory;               /* bytes that a pass may use by the plan's estimate; 0: no limit */

    /* Called before the first and after every unit of work of "invert", "sample" and "decode"; NULL: nobody watches.
     * A return value other than 0 stops the work: pc_render returns "cancelled". */
    int (*progress)(void* user, const char* stage, int32_t done, int32_t total);
    /* Called for frames first .. first+count-1 as they are decoded, uint8 RGB [count, H, W, 3], valid during the call;
     * NULL: no preview. A return value other than 0 stops the work. */
    int (*preview)(void* user, int32_t first, int32_t count, const uint8_t* frames);
    void* user; /* handed to both */

    int32_t inversion_iterations; /* of an inverse step, 1..16, or PC_DEFAULT; 1 is the published one, each
                                     further one brings the inversion nearer to the path that sampling takes back */
    int32_t keep_mean;            /* 1, 0 or PC_DEFAULT: whether a frame's latents keep their mean, and with it the
                                     picture its colours, where regions are moved; 0 is the published editing */
    int32_t sampling_steps;       /* solver steps of sampling, 1..steps, or PC_DEFAULT; fewer than `steps` are taken by
                                     a solver of second order */
    int32_t reserved;             /* 0 */
} pc_request;

static inline void pc_request_init(pc_request* request) {
    memset(request, 0, sizeof *request);
    request->struct_size = (uint32_t)sizeof *request;
    request->reference = request->steps = request->window = request->inversion_iterations = PC_DEFAULT;
    request->keep_mean = request->sampling_steps = PC_DEFAULT;
    request->guidance = request->control_scale = PC_DEFAULT;
    request->edit = PC_ALL_REGIONS;
    request->decode_chunk = 8;
}

/* ---- Plans ---------------------------------------------------------------------------------------------------- */

/* What pc_render would do: no network runs. */
typedef struct pc_planned pc_planned;

typedef struct pc_plan_summary {
    int32_t frames;        /* M */
    int32_t width, height; /* of a frame, in pixels */
    int32_t reference;     /* index of the training frame */
    int32_t windows;       /* passes */
    uint64_t evaluations;  /* frame evaluations of the network: a pass over F frames and B prompts counts F * B */
    uint64_t memory;       /* estimated peak bytes of a pass, weights among them, the video not */
    const char* json;      /* everything: sizes, windows, warnings, every step (t, a, b, c), every motion */
} pc_plan_summary;

/* Codes: those of a request's ranges ("steps-range", "sampling-steps-range", "guidance-range", "window-range",
 * "memory-budget", ...), "poses-empty", "poses-not-finite", "no-common-key-points", "engine-load", "null-argument",
 * "session-busy".
 * Given to pc_planned_free. */
PC_API pc_status pc_plan(pc_session* session, const pc_request* request, pc_planned** plan);

/* Fill *summary; its text is valid until the plan is freed. */
PC_API pc_status pc_planned_view(const pc_planned* plan, pc_plan_summary* summary);

/* Free the plan and set *plan to NULL. */
PC_API void pc_planned_free(pc_planned** plan);

/* ---- Pictures ------------------------------------------------------------------------------------------------- */

/* Caller-owned buffers with their sizes in bytes. A NULL buffer is not written. */
typedef struct pc_output {
    uint32_t struct_size;
    uint8_t* frames;      /* [M, H, W, 3] RGB */
    size_t frames_bytes;  /* at least M * H * W * 3 */
    float* latents;       /* [M, L, h, w]: the clean latents, scaled as the decoder takes them */
    size_t latents_bytes; /* at least M * L * h * w * 4 */
} pc_output;

static inline void pc_output_init(pc_output* output) {
    memset(output, 0, sizeof *output);
    output->struct_size = (uint32_t)sizeof *output;
}

/* Render a request. output: NULL where the preview callback takes the frames.
 * Codes: those of pc_plan, "buffer-size", "cancelled", "engine-load", "engine-run", "engine-memory",
 * "nan-latents"; of the engine tensorrt also "plan-missing", "plan-record", "plan-version", "plan-stale",
 * "plan-target", "plan-altered", "plan-size". */
PC_API pc_status pc_render(pc_session* session, const pc_request* request, const pc_output* output);

/* Draw the control images of the request's poses at the bundle's size, in the bundle's style: uint8 RGB [M, H, W, 3]
 * into `images` of `bytes` bytes. Codes: "buffer-size", "poses-empty", "poses-not-finite". */
PC_API pc_status pc_draw(pc_session* session, const pc_request* request, uint8_t* images, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
