/* kfcnet.ops.cpu._native: convolution, Kronecker factor, pooling, response normalisation and random
 * numbers on the CPU.
 *
 * What   Optional helper of ops/cpu.py. A function works on the images it is given, writes its
 *        result into an array of the caller, releases the GIL and keeps no state: the caller may
 *        run one call per batch shard on threads of its own. An optional last argument names the
 *        instruction set; without it the best one of the CPU at hand is taken.
 * Arrays C-contiguous float32 or float64 buffers, one type per call. Images are NHWC; a weight
 *        matrix is (I, 1 + K*K*J) with the bias in column 0 and tap (delta, j), delta = kr*K + kc,
 *        in column 1 + delta*J + j.
 * How    Convolution and Kronecker factor are one loop nest, `accumulate`: a tile of TILE rows
 *        times one or two vectors stays in registers and takes rank-one updates. Images are copied
 *        into zero-padded scratch, so that inner loops know no borders; the K*J inputs under one
 *        kernel row then lie side by side.
 * Build  -O3 -fno-math-errno; without the latter, response normalisation takes roots one by one.
 * Where  This file is the module; native_kernels.h has the kernels, and is included once per
 *        instruction set and number type. Tests: tests/test_native.py.
 *
 * Letters: M images, H x W input, J input maps, I output maps, K kernel side, Ho x Wo output.
 */
#if !defined(__GNUC__)
#error "kfcnet.ops.cpu._native needs the vector extensions of gcc or clang"
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef Py_ssize_t size;

/* ---- shapes ---- */

typedef struct {
    size images, height, width, in_maps, out_height, out_width, out_maps, kernel, stride, padding;
} conv_shape;

/* Pooling: windows start inside the image and are clipped at its right and bottom border. */
typedef struct {
    size images, height, width, maps, out_height, out_width, window, stride;
} pool_shape;

/* Response normalisation over `window` x `window` pixels of a map, or over `window` maps. */
typedef struct {
    size images, height, width, maps, window;
    int across;
    double alpha, power;
} norm_shape;

/* `count` numbers of the sequence of (seed, purpose, step, stream), from number `first` on. */
typedef struct {
    size count, first;
    uint64_t step;
    uint32_t seed, purpose, stream;
} draw_shape;

typedef union {
    conv_shape conv;
    pool_shape pool;
    norm_shape norm;
    draw_shape draw;
} any_shape;

/* What the module computes. A pass takes its arrays in the order of the call, and a member of
 * `any_shape`; it returns -1 if it ran out of memory, else 0. */
typedef int pass(void *const *arrays, const void *shape);
enum {
    CONV_FORWARD,
    CONV_BACKWARD_DATA,
    CONV_BACKWARD_WEIGHTS,
    PATCH_GRAM_REGIONS,
    PATCH_GRAM_ASSEMBLE,
    MAX_POOL,
    MAX_POOL_BACKWARD,
    MAX_POOL_TANGENT,
    AVG_POOL,
    AVG_POOL_BACKWARD,
    RESPONSE_NORM,
    RESPONSE_NORM_BACKWARD,
    RESPONSE_NORM_TANGENT,
    FILL_UNIFORMS,
    PASSES
};

/* ---- what the kernels need whatever their number type ---- */

/* Steps, in elements, of the two loops of `accumulate`. */
typedef struct {
    size outer, inner;     /* number of iterations */
    size x_outer, x_inner; /* how far x moves */
    size w_outer, w_inner; /* how far w moves */
} walk;

/* A correlation of a padded image (`wide` columns; zero but for rows `top` to `bottom`). */
typedef struct {
    size wide, top, bottom, maps, kernel, stride;
    size rows, columns, outputs, padded_outputs; /* of the result; whole vectors of outputs */
} plane;

/* Pixels [row, row_end) x [column, column_end) of an image whose first pixel is number `image`. */
typedef struct {
    size image, row, row_end, column, column_end;
} pool_window;

#define ALIGNMENT 64
#define PHILOX_BLOCKS 64
#define ALWAYS_INLINE inline __attribute__((always_inline))

static size smaller(size a, size b) { return a < b ? a : b; }
static size larger(size a, size b) { return a > b ? a : b; }
static size round_up(size n, size unit) { return (n + unit - 1) / unit * unit; }

/* Zeroed scratch that starts on a vector's boundary; `*block` is what free() takes. */
static void *scratch(size bytes, void **block)
{
    *block = calloc((size_t)bytes + ALIGNMENT, 1);
    if (*block == NULL)
        return NULL;
    return (void *)(((uintptr_t)*block + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
}

/* The regions of `patch_gram_regions` along one side of an image: every window [k - padding,
 * k - padding + windows), k < kernel, holds a region or misses it. The end of the region that
 * starts at `start`: */
static size region_end(size start, size length, size kernel, size padding)
{
    size windows = length + 2 * padding - kernel + 1, end = length;
    for (size k = 0; k < kernel; k++) {
        if (k - padding > start)
            end = smaller(end, k - padding);
        if (k - padding + windows > start)
            end = smaller(end, k - padding + windows);
    }
    return end;
}

static size region_count(size length, size kernel, size padding)
{
    size count = 0;
    for (size start = 0; start < length; start = region_end(start, length, kernel, padding))
        count++;
    return count;
}

static int region_in_window(size start, size k, size length, size kernel, size padding)
{
    size windows = length + 2 * padding - kernel + 1;
    return start >= k - padding && start < k - padding + windows;
}

/* The window of output pixel number `output` of the batch. */
static pool_window window_of(const pool_shape *s, size output)
{
    size positions = s->out_height * s->out_width, at = output % positions;
    size row = at / s->out_width * s->stride, column = at % s->out_width * s->stride;
    return (pool_window){output / positions * s->height * s->width,
                         row, smaller(row + s->window, s->height),
                         column, smaller(column + s->window, s->width)};
}

static size pool_outputs(const pool_shape *s) { return s->images * s->out_height * s->out_width; }

/* ---- the kernels, by instruction set and number type ---- */

#define JOIN3(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN3(a, b, c)
#define NAME(function) JOIN(function, TARGET, REAL)
typedef int32_t integer_like_float;
typedef int64_t integer_like_double;

#if defined(__x86_64__)

#define TARGET avx512
#define VECTOR_BYTES 64
#define TILE 8 /* x 2 vectors: 16 sums cover the latency of two multiply-add units */
#if defined(__clang__)
#pragma clang attribute push(                                                 \
    __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma")
#endif
#define REAL float
#include "native_kernels.h"
#define REAL double
#include "native_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TARGET
#undef VECTOR_BYTES
#undef TILE

#define TARGET avx2
#define VECTOR_BYTES 32
#define TILE 4 /* x 2 vectors: 8 of 16 registers for the sums, 3 for the operands */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REAL float
#include "native_kernels.h"
#define REAL double
#include "native_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TARGET
#undef VECTOR_BYTES
#undef TILE

#endif

#define TARGET baseline
#define VECTOR_BYTES 16
#if defined(__aarch64__)
#define TILE 8 /* 32 registers */
#else
#define TILE 4
#endif
#define REAL float
#include "native_kernels.h"
#define REAL double
#include "native_kernels.h"
#undef TARGET
#undef VECTOR_BYTES
#undef TILE

typedef struct {
    const char *name;
    pass *const *of_float, *const *of_double; /* PASSES kernels each */
} target;

/* Best first. */
static const target targets[] = {
#if defined(__x86_64__)
    {"avx512", kernels_avx512_float, kernels_avx512_double},
    {"avx2", kernels_avx2_float, kernels_avx2_double},
#endif
    {"baseline", kernels_baseline_float, kernels_baseline_double},
};
#define TARGETS ((int)(sizeof targets / sizeof targets[0]))

static int runs_here(const target *t)
{
#if defined(__x86_64__)
    if (t->of_float == kernels_avx512_float)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
    if (t->of_float == kernels_avx2_float)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    (void)t;
    return 1;
}

/* ---- arguments ---- */

enum { READ = 0, WRITTEN = 1, BYTES = 2 };
#define MAX_ARRAYS 4
#define MAX_SIDE ((size)1 << 20) /* of kernels and windows, and of the images of a factor */
#define MAX_BYTES 0x1p61 /* of a padded image, so that sums of sizes stay exact */

typedef struct call call;

/* A function of the module: its arrays, then `numbers` further arguments, which `take_shape` reads
 * into the shape while it checks the arrays. */
typedef struct {
    const char *function;
    struct {
        const char *name;
        int axes, flags;
    } arrays[MAX_ARRAYS];
    size numbers;
    int (*take_shape)(call *c, any_shape *s);
    int image, output, other; /* which array is the image, the output, the weight or argmax */
} description;

/* The arguments of one call as they are taken in: buffers held, common number type 'f' or 'd'. */
struct call {
    const description *what;
    PyObject *const *args;
    size given, taken;
    Py_buffer buffers[MAX_ARRAYS];
    int held;
    char real;
};

static void release(call *c)
{
    while (c->held > 0)
        PyBuffer_Release(&c->buffers[--c->held]);
}

static char format_of(const Py_buffer *b)
{
    const char *f = b->format == NULL ? "B" : b->format;
    if (*f == '@' || *f == '=')
        f++;
    return f[0] != '\0' && f[1] == '\0' ? f[0] : '?';
}

static int check_type(call *c, const Py_buffer *b, const char *name, int flags)
{
    char format = format_of(b);
    if (flags & BYTES) {
        if (format == 'B')
            return 0;
        PyErr_Format(PyExc_TypeError, "%s: %s must be uint8", c->what->function, name);
        return -1;
    }
    if (format != 'f' && format != 'd')
        PyErr_Format(PyExc_TypeError, "%s: %s must be float32 or float64, not '%s'",
                     c->what->function, name, b->format == NULL ? "B" : b->format);
    else if (c->real != '\0' && c->real != format)
        PyErr_Format(PyExc_TypeError, "%s: %s must have the number type of the arrays before it",
                     c->what->function, name);
    else
        return c->real = format, 0;
    return -1;
}

/* Takes the next argument as a C-contiguous array. */
static int take_array(call *c, const char *name, int axes, int flags)
{
    Py_buffer *b = &c->buffers[c->held];
    PyObject *object = c->args[c->taken++];
    int wanted = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (flags & WRITTEN ? PyBUF_WRITABLE : 0);
    if (!PyObject_CheckBuffer(object)) {
        PyErr_Format(PyExc_TypeError, "%s: %s must be an array, not %.100s", c->what->function,
                     name, Py_TYPE(object)->tp_name);
        return -1;
    }
    if (PyObject_GetBuffer(object, b, wanted) < 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: %s must be C-contiguous%s", c->what->function, name,
                     flags & WRITTEN ? " and writable" : "");
        return -1;
    }
    c->held++;
    if (b->ndim != axes) {
        PyErr_Format(PyExc_ValueError, "%s: %s must have %d axes, not %d", c->what->function, name,
                     axes, b->ndim);
        return -1;
    }
    return check_type(c, b, name, flags);
}

/* Takes the next argument as an integer from `least` to `most`; -1 with an error set if not. */
static size take_size(call *c, const char *name, size least, size most)
{
    size value = PyNumber_AsSsize_t(c->args[c->taken++], PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (value >= least && value <= most)
        return value;
    PyErr_Format(PyExc_ValueError, "%s: %s must be between %zd and %zd, not %zd",
                 c->what->function, name, least, most, value);
    return -1;
}

static int take_real(call *c, double *value)
{
    *value = PyFloat_AsDouble(c->args[c->taken++]);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Has array number `array` this shape, of as many axes as it has? */
static int check_shape(const call *c, int array, const size *expected)
{
    const Py_buffer *b = &c->buffers[array];
    for (int axis = 0; axis < b->ndim; axis++)
        if (b->shape[axis] != expected[axis]) {
            PyErr_Format(PyExc_ValueError, "%s: axis %d of %s must have length %zd, not %zd",
                         c->what->function, axis, c->what->arrays[array].name, expected[axis],
                         b->shape[axis]);
            return -1;
        }
    return 0;
}

/* The output size, once images, kernel, stride and padding are known. `maps`: the most that an image
 * has. All that the kernels allocate is about as large as an array of the call, but for a padded
 * image, in which the kernel may lie at any pixel. */
static int set_output(const call *c, conv_shape *s, size maps)
{
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    if (high < s->kernel || wide < s->kernel) {
        PyErr_Format(PyExc_ValueError,
                     "%s: kernel %zd does not fit into an image of %zd x %zd with padding %zd",
                     c->what->function, s->kernel, s->height, s->width, s->padding);
        return -1;
    }
    if ((double)(high + s->kernel) * (double)(wide + s->kernel) * (double)maps * 8 > MAX_BYTES) {
        PyErr_Format(PyExc_ValueError,
                     "%s: an image of %zd x %zd x %zd with padding %zd is too large",
                     c->what->function, s->height, s->width, maps, s->padding);
        return -1;
    }
    s->out_height = (high - s->kernel) / s->stride + 1;
    s->out_width = (wide - s->kernel) / s->stride + 1;
    return 0;
}

static int take_conv(call *c, any_shape *shape)
{
    conv_shape *s = &shape->conv;
    const description *what = c->what;
    const Py_ssize_t *image = c->buffers[what->image].shape;
    s->images = image[0], s->height = image[1], s->width = image[2], s->in_maps = image[3];
    s->out_maps = c->buffers[what->output].shape[3];
    if ((s->kernel = take_size(c, "kernel", 1, MAX_SIDE)) < 0 ||
        (s->stride = take_size(c, "stride", 1, MAX_SIDE)) < 0 ||
        (s->padding = take_size(c, "padding", 0, MAX_SIDE)) < 0 ||
        set_output(c, s, larger(s->in_maps, s->out_maps)) < 0)
        return -1;
    size output[] = {s->images, s->out_height, s->out_width, s->out_maps};
    size weight[] = {s->out_maps, 1 + s->kernel * s->kernel * s->in_maps};
    if (check_shape(c, what->output, output) < 0)
        return -1;
    return check_shape(c, what->other, weight);
}

/* Kernel and padding of a factor; its convolution's stride is one. */
static int take_factor(call *c, conv_shape *s)
{
    s->stride = 1;
    if ((s->kernel = take_size(c, "kernel", 1, MAX_SIDE)) < 0 ||
        (s->padding = take_size(c, "padding", 0, MAX_SIDE)) < 0)
        return -1;
    return set_output(c, s, s->in_maps);
}

static int take_sides(call *c, conv_shape *s)
{
    if ((s->height = take_size(c, "height", 1, MAX_SIDE)) < 0 ||
        (s->width = take_size(c, "width", 1, MAX_SIDE)) < 0 ||
        (s->in_maps = take_size(c, "maps", 1, MAX_SIDE)) < 0)
        return -1;
    return take_factor(c, s);
}

static void regions_shape(const conv_shape *s, size axes[5])
{
    axes[0] = region_count(s->height, s->kernel, s->padding);
    axes[1] = region_count(s->width, s->kernel, s->padding);
    axes[2] = s->kernel;
    axes[3] = s->in_maps + 1;
    axes[4] = (2 * s->kernel - 1) * s->in_maps;
}

static int take_regions(call *c, any_shape *shape)
{
    conv_shape *s = &shape->conv;
    const Py_ssize_t *x = c->buffers[0].shape;
    size axes[5];
    s->images = x[0], s->height = x[1], s->width = x[2], s->in_maps = x[3];
    if (take_factor(c, s) < 0)
        return -1;
    regions_shape(s, axes);
    return check_shape(c, 1, axes);
}

static int take_assembly(call *c, any_shape *shape)
{
    conv_shape *s = &shape->conv;
    size axes[5];
    if ((s->images = take_size(c, "images", 0, PY_SSIZE_T_MAX)) < 0 || take_sides(c, s) < 0)
        return -1;
    regions_shape(s, axes);
    size side = 1 + s->kernel * s->kernel * s->in_maps, square[] = {side, side};
    if (check_shape(c, 0, axes) < 0)
        return -1;
    return check_shape(c, 1, square);
}

/* Windows along a side: all that start inside, clipped, or those alone that lie inside, where the
 * result has no room for more. */
static size pooled_side(const call *c, int axis, size length, const pool_shape *s)
{
    size over = larger(0, length - s->window), whole = over / s->stride + 1;
    if (length >= s->window && c->buffers[c->what->output].shape[axis] == whole)
        return whole;
    return (over + s->stride - 1) / s->stride + 1;
}

static int take_pool(call *c, any_shape *shape)
{
    pool_shape *s = &shape->pool;
    const description *what = c->what;
    const Py_ssize_t *image = c->buffers[what->image].shape;
    s->images = image[0], s->height = image[1], s->width = image[2], s->maps = image[3];
    /* Where there is an argmax, every offset in a window fits into a byte. A stride beyond the size
     * could leave a window outside the image. */
    if ((s->window = take_size(c, "size", 1, what->other < 0 ? MAX_SIDE : 16)) < 0 ||
        (s->stride = take_size(c, "stride", 1, s->window)) < 0)
        return -1;
    if (s->height < 1 || s->width < 1) {
        PyErr_Format(PyExc_ValueError, "%s: %s has no pixels", what->function,
                     what->arrays[what->image].name);
        return -1;
    }
    s->out_height = pooled_side(c, 1, s->height, s);
    s->out_width = pooled_side(c, 2, s->width, s);
    size output[] = {s->images, s->out_height, s->out_width, s->maps};
    if (check_shape(c, what->output, output) < 0)
        return -1;
    return what->other < 0 ? 0 : check_shape(c, what->other, output);
}

static int take_norm(call *c, any_shape *shape)
{
    norm_shape *s = &shape->norm;
    const Py_ssize_t *x = c->buffers[0].shape;
    for (int array = 1; array < c->held; array++)
        if (check_shape(c, array, x) < 0)
            return -1;
    s->images = x[0], s->height = x[1], s->width = x[2], s->maps = x[3];
    if ((s->window = take_size(c, "size", 1, MAX_SIDE)) < 0 || take_real(c, &s->alpha) < 0 ||
        take_real(c, &s->power) < 0)
        return -1;
    s->across = PyObject_IsTrue(c->args[c->taken++]);
    return s->across < 0 ? -1 : 0;
}

static int take_draw(call *c, any_shape *shape)
{
    draw_shape *s = &shape->draw;
    size seed, purpose, step, stream;
    s->count = c->buffers[0].shape[0];
    if ((seed = take_size(c, "seed", 0, UINT32_MAX)) < 0 ||
        (purpose = take_size(c, "purpose", 0, UINT32_MAX)) < 0 ||
        (step = take_size(c, "step", 0, PY_SSIZE_T_MAX)) < 0 ||
        (stream = take_size(c, "stream", 0, UINT32_MAX)) < 0 ||
        (s->first = take_size(c, "first", 0, PY_SSIZE_T_MAX / 2)) < 0) /* whole blocks fit too */
        return -1;
    s->seed = (uint32_t)seed, s->purpose = (uint32_t)purpose, s->stream = (uint32_t)stream;
    s->step = (uint64_t)step;
    return 0;
}

static const description descriptions[PASSES] = {
    [CONV_FORWARD] = {"conv_forward", {{"x", 4, READ}, {"weight", 2, READ}, {"y", 4, WRITTEN}},
                      3, take_conv, 0, 2, 1},
    [CONV_BACKWARD_DATA] = {"conv_backward_data",
                            {{"dy", 4, READ}, {"weight", 2, READ}, {"dx", 4, WRITTEN}},
                            3, take_conv, 2, 0, 1},
    [CONV_BACKWARD_WEIGHTS] = {"conv_backward_weights",
                               {{"x", 4, READ}, {"dy", 4, READ}, {"out", 2, WRITTEN}},
                               3, take_conv, 0, 1, 2},
    [PATCH_GRAM_REGIONS] = {"patch_gram_regions", {{"x", 4, READ}, {"regions", 5, WRITTEN}},
                            2, take_regions, 0, 1, -1},
    [PATCH_GRAM_ASSEMBLE] = {"patch_gram_assemble", {{"regions", 5, READ}, {"out", 2, WRITTEN}},
                             6, take_assembly, 0, 1, -1},
    [MAX_POOL] = {"max_pool", {{"x", 4, READ}, {"y", 4, WRITTEN}, {"argmax", 4, WRITTEN | BYTES}},
                  2, take_pool, 0, 1, 2},
    [MAX_POOL_BACKWARD] = {"max_pool_backward",
                           {{"dy", 4, READ}, {"argmax", 4, READ | BYTES}, {"dx", 4, WRITTEN}},
                           2, take_pool, 2, 0, 1},
    [MAX_POOL_TANGENT] = {"max_pool_tangent",
                          {{"rx", 4, READ}, {"argmax", 4, READ | BYTES}, {"ry", 4, WRITTEN}},
                          2, take_pool, 0, 2, 1},
    [AVG_POOL] = {"avg_pool", {{"x", 4, READ}, {"y", 4, WRITTEN}}, 2, take_pool, 0, 1, -1},
    [AVG_POOL_BACKWARD] = {"avg_pool_backward", {{"dy", 4, READ}, {"dx", 4, WRITTEN}},
                           2, take_pool, 1, 0, -1},
    [RESPONSE_NORM] = {"response_norm", {{"x", 4, READ}, {"y", 4, WRITTEN}, {"d", 4, WRITTEN}},
                       4, take_norm, 0, 1, -1},
    [RESPONSE_NORM_BACKWARD] = {"response_norm_backward",
                                {{"dy", 4, READ}, {"x", 4, READ}, {"d", 4, READ},
                                 {"dx", 4, WRITTEN}},
                                4, take_norm, 1, 3, -1},
    [RESPONSE_NORM_TANGENT] = {"response_norm_tangent",
                               {{"rx", 4, READ}, {"x", 4, READ}, {"d", 4, READ},
                                {"ry", 4, WRITTEN}},
                               4, take_norm, 1, 3, -1},
    [FILL_UNIFORMS] = {"fill_uniforms", {{"out", 1, WRITTEN}}, 5, take_draw, -1, 0, -1},
};

/* ---- calls ---- */

static int check_count(const call *c, const char *function, size expected, int target_allowed)
{
    if (c->given == expected || (target_allowed && c->given == expected + 1))
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments%s, not %zd", function, expected,
                 target_allowed ? " and optionally a target" : "", c->given);
    return -1;
}

/* The kernels for the call's number type; an optional last argument names the instruction set. */
static pass *const *take_kernels(call *c)
{
    PyObject *name = c->taken < c->given ? c->args[c->taken++] : NULL;
    for (int t = 0; t < TARGETS; t++) {
        int wanted = name == NULL || (PyUnicode_Check(name) &&
                                      !PyUnicode_CompareWithASCIIString(name, targets[t].name));
        if (wanted && runs_here(&targets[t]))
            return c->real == 'f' ? targets[t].of_float : targets[t].of_double;
    }
    PyErr_Format(PyExc_ValueError, "%s: %R is not among kfcnet.ops.cpu._native.targets",
                 c->what->function, name);
    return NULL;
}

static int take_arrays(call *c)
{
    for (int a = 0; a < MAX_ARRAYS && c->what->arrays[a].name != NULL; a++)
        if (take_array(c, c->what->arrays[a].name, c->what->arrays[a].axes,
                       c->what->arrays[a].flags) < 0)
            return -1;
    return 0;
}

static PyObject *run(int number, PyObject *const *args, Py_ssize_t given)
{
    call c = {.what = &descriptions[number], .args = args, .given = given};
    size expected = c.what->numbers;
    any_shape s;
    pass *const *kernels;
    PyObject *result = NULL;
    for (int a = 0; a < MAX_ARRAYS && c.what->arrays[a].name != NULL; a++)
        expected++;
    if (check_count(&c, c.what->function, expected, 1) < 0)
        return NULL;
    if (take_arrays(&c) == 0 && c.what->take_shape(&c, &s) == 0 &&
        (kernels = take_kernels(&c)) != NULL) {
        void *arrays[MAX_ARRAYS] = {NULL};
        int status;
        for (int a = 0; a < c.held; a++)
            arrays[a] = c.buffers[a].buf;
        Py_BEGIN_ALLOW_THREADS
        status = kernels[number](arrays, &s);
        Py_END_ALLOW_THREADS
        result = status < 0 ? PyErr_NoMemory() : Py_NewRef(Py_None);
    }
    release(&c);
    return result;
}

#define METHOD(name, number)                                                          \
    static PyObject *name(PyObject *module, PyObject *const *args, Py_ssize_t given)  \
    {                                                                                 \
        (void)module;                                                                 \
        return run(number, args, given);                                              \
    }
METHOD(conv_forward, CONV_FORWARD)
METHOD(conv_backward_data, CONV_BACKWARD_DATA)
METHOD(conv_backward_weights, CONV_BACKWARD_WEIGHTS)
METHOD(patch_gram_regions, PATCH_GRAM_REGIONS)
METHOD(patch_gram_assemble, PATCH_GRAM_ASSEMBLE)
METHOD(max_pool, MAX_POOL)
METHOD(max_pool_backward, MAX_POOL_BACKWARD)
METHOD(max_pool_tangent, MAX_POOL_TANGENT)
METHOD(avg_pool, AVG_POOL)
METHOD(avg_pool_backward, AVG_POOL_BACKWARD)
METHOD(response_norm, RESPONSE_NORM)
METHOD(response_norm_backward, RESPONSE_NORM_BACKWARD)
METHOD(response_norm_tangent, RESPONSE_NORM_TANGENT)
METHOD(fill_uniforms, FILL_UNIFORMS)

static PyObject *patch_gram_regions_shape(PyObject *module, PyObject *const *args, Py_ssize_t given)
{
    static const description what = {.function = "patch_gram_regions_shape"};
    call c = {.what = &what, .args = args, .given = given};
    conv_shape s = {.images = 0};
    size axes[5];
    (void)module;
    if (check_count(&c, what.function, 5, 0) < 0 || take_sides(&c, &s) < 0)
        return NULL;
    regions_shape(&s, axes);
    return Py_BuildValue("(nnnnn)", axes[0], axes[1], axes[2], axes[3], axes[4]);
}

#define ENTRY(name, doc) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, #name doc}
static PyMethodDef methods[] = {
    ENTRY(conv_forward, "(x, weight, y, kernel, stride, padding[, target])\n\n"
          "y (M, Ho, Wo, I) = bias + correlation of x (M, H, W, J) with weight (I, 1 + K*K*J)."),
    ENTRY(conv_backward_data, "(dy, weight, dx, kernel, stride, padding[, target])\n\n"
          "dx (M, H, W, J) = adjoint of conv_forward in x, applied to dy (M, Ho, Wo, I)."),
    ENTRY(conv_backward_weights, "(x, dy, out, kernel, stride, padding[, target])\n\n"
          "out (I, 1 + K*K*J) = derivatives by bias and weight, summed over images and positions."),
    ENTRY(patch_gram_regions, "(x, regions, kernel, padding[, target])\n\n"
          "Shifted products of x (M, H, W, J), summed over images and over the regions between\n"
          "the edges of the kernel's windows; regions is shaped as patch_gram_regions_shape says."),
    ENTRY(patch_gram_regions_shape, "(height, width, maps, kernel, padding)\n\n"
          "The shape of the array that patch_gram_regions fills."),
    ENTRY(patch_gram_assemble, "(regions, out, images, height, width, maps, kernel, padding"
          "[, target])\n\n"
          "out (P, P), P = 1 + K*K*J: the sum over images and positions of the products of a\n"
          "patch, led by a one, with itself; stride 1. Regions of parts of a batch may be added."),
    ENTRY(max_pool, "(x, y, argmax, size, stride[, target])\n\n"
          "y = maximum of each clipped window, argmax (uint8) = offset r*size + c of the first."),
    ENTRY(max_pool_backward, "(dy, argmax, dx, size, stride[, target])\n\n"
          "dx = dy at the pixels that were the maxima."),
    ENTRY(max_pool_tangent, "(rx, argmax, ry, size, stride[, target])\n\n"
          "ry = rx at the pixels that were the maxima."),
    ENTRY(avg_pool, "(x, y, size, stride[, target])\n\ny = mean of each clipped window."),
    ENTRY(avg_pool_backward, "(dy, dx, size, stride[, target])\n\n"
          "dx = dy spread evenly over the clipped windows."),
    ENTRY(response_norm, "(x, y, d, size, alpha, power, across[, target])\n\n"
          "y = x * d^-power, d = 1 + alpha * sum of x^2 over size x size pixels or size maps."),
    ENTRY(response_norm_backward, "(dy, x, d, dx, size, alpha, power, across[, target])\n\n"
          "dx = adjoint of the derivative of response_norm at x, applied to dy."),
    ENTRY(response_norm_tangent, "(rx, x, d, ry, size, alpha, power, across[, target])\n\n"
          "ry = derivative of response_norm at x along rx."),
    ENTRY(fill_uniforms, "(out, seed, purpose, step, stream, first[, target])\n\n"
          "out (n,) = the uniforms of kfcnet.philox from number `first` of their sequence on."),
    {NULL, NULL, 0, NULL}};

/* `targets`: instruction sets this CPU runs, best first; `DTYPES`: number types of the arrays;
 * `SOURCES_CRC`: checksum of this file and native_kernels.h as they were built. */
static int add_constants(PyObject *module)
{
    PyObject *names = PyList_New(0), *tuple = NULL;
    PyObject *dtypes = Py_BuildValue("(ss)", "float32", "float64");
    PyObject *checksum = PyLong_FromUnsignedLong(SOURCES_CRC);
    int status = names == NULL || dtypes == NULL || checksum == NULL ? -1 : 0;
    for (int t = 0; status == 0 && t < TARGETS; t++) {
        PyObject *name = PyUnicode_FromString(targets[t].name);
        if (name == NULL || (runs_here(&targets[t]) && PyList_Append(names, name) < 0))
            status = -1;
        Py_XDECREF(name);
    }
    if (status < 0 || (tuple = PyList_AsTuple(names)) == NULL ||
        PyModule_AddObjectRef(module, "targets", tuple) < 0 ||
        PyModule_AddObjectRef(module, "DTYPES", dtypes) < 0 ||
        PyModule_AddObjectRef(module, "SOURCES_CRC", checksum) < 0)
        status = -1;
    Py_XDECREF(names);
    Py_XDECREF(tuple);
    Py_XDECREF(dtypes);
    Py_XDECREF(checksum);
    return status;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)add_constants},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Convolution, its Kronecker factor, pooling, response normalisation and random numbers "
             "on the CPU.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
