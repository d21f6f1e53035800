/* kfcnet.ops.cpu._native: convolution, Kronecker factor, pooling, response normalisation on the CPU.
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
 * Where  The first half is the module; the second half has the kernels, which the file includes
 *        from itself once per instruction set and number type. Tests: tests/test_native.py.
 *
 * Letters: M images, H x W input, J input maps, I output maps, K kernel side, Ho x Wo output.
 */
#ifndef REAL /* ---------------------------- the module, read once ---------------------------- */

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

typedef union {
    conv_shape conv;
    pool_shape pool;
    norm_shape norm;
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
#include "native.c"
#define REAL double
#include "native.c"
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
#include "native.c"
#define REAL double
#include "native.c"
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
#include "native.c"
#define REAL double
#include "native.c"
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
#define MAX_SIDE ((size)1 << 20) /* of kernels and images: products of sizes stay exact */

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

/* The output size, once images, kernel, stride and padding are known. */
static int set_output(const call *c, conv_shape *s)
{
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    if (high < s->kernel || wide < s->kernel) {
        PyErr_Format(PyExc_ValueError,
                     "%s: kernel %zd does not fit into an image of %zd x %zd with padding %zd",
                     c->what->function, s->kernel, s->height, s->width, s->padding);
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
        (s->padding = take_size(c, "padding", 0, MAX_SIDE)) < 0 || set_output(c, s) < 0)
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
    return set_output(c, s);
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
    s->out_height = 1 + larger(0, s->height - s->window + s->stride - 1) / s->stride;
    s->out_width = 1 + larger(0, s->width - s->window + s->stride - 1) / s->stride;
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
    {NULL, NULL, 0, NULL}};

/* `targets`: instruction sets this CPU runs, best first; `DTYPES`: number types of the arrays. */
static int add_constants(PyObject *module)
{
    PyObject *names = PyList_New(0), *tuple = NULL;
    PyObject *dtypes = Py_BuildValue("(ss)", "float32", "float64");
    int status = names == NULL || dtypes == NULL ? -1 : 0;
    for (int t = 0; status == 0 && t < TARGETS; t++) {
        PyObject *name = PyUnicode_FromString(targets[t].name);
        if (name == NULL || (runs_here(&targets[t]) && PyList_Append(names, name) < 0))
            status = -1;
        Py_XDECREF(name);
    }
    if (status < 0 || (tuple = PyList_AsTuple(names)) == NULL ||
        PyModule_AddObjectRef(module, "targets", tuple) < 0 ||
        PyModule_AddObjectRef(module, "DTYPES", dtypes) < 0)
        status = -1;
    Py_XDECREF(names);
    Py_XDECREF(tuple);
    Py_XDECREF(dtypes);
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
    .m_doc = "Convolution, its Kronecker factor, pooling and response normalisation on the CPU.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}

#else /* --------------------- the kernels, read once per TARGET and REAL --------------------- */

#define LANES ((size)(VECTOR_BYTES / sizeof(REAL)))
#define vector NAME(vector)
#define loose NAME(loose)
#define lanes NAME(lanes)
#define byte_lanes NAME(byte_lanes)
#define scene_block NAME(scene_block)
typedef REAL vector __attribute__((vector_size(VECTOR_BYTES)));
/* A vector as it lies in an array of REAL, at any address. */
typedef REAL loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
/* Integers as wide as REAL, as comparisons yield them, and as many bytes. */
typedef JOIN(integer, like, REAL) lanes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t byte_lanes __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL))));

static size NAME(bytes)(size count) { return count * (size)sizeof(REAL); }

/* sum[n][v] += sum over outer a, inner b of x[a*x_outer + b*x_inner + n*x_tile] times vector v at
 * w[a*w_outer + b*w_inner]. `vectors` (1 or 2) is a constant where this is inlined, so that `sum`
 * lives in registers. */
static ALWAYS_INLINE void NAME(accumulate)(vector sum[TILE][2], const REAL *x, size x_tile,
                                           const REAL *w, walk s, int vectors)
{
    for (size a = 0; a < s.outer; a++) {
        const REAL *p = x + a * s.x_outer, *q = w + a * s.w_outer;
        for (size b = 0; b < s.inner; b++, p += s.x_inner, q += s.w_inner) {
            vector t[2];
            for (int v = 0; v < vectors; v++)
                t[v] = ((const loose *)q)[v];
            for (int n = 0; n < TILE; n++)
                for (int v = 0; v < vectors; v++)
                    sum[n][v] += p[n * x_tile] * t[v];
        }
    }
}

static ALWAYS_INLINE void NAME(clear)(vector sum[TILE][2], int vectors)
{
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            sum[n][v] = (vector){0};
}

/* The first `count` numbers at `from`, at most LANES; zeros behind them. */
static ALWAYS_INLINE vector NAME(load_some)(const REAL *from, size count)
{
    vector result = {0};
    if (count >= LANES)
        return *(const loose *)from;
    memcpy(&result, from, (size_t)NAME(bytes)(count));
    return result;
}

static ALWAYS_INLINE void NAME(store_some)(REAL *to, vector from, size count)
{
    if (count >= LANES)
        *(loose *)to = from;
    else
        memcpy(to, &from, (size_t)NAME(bytes)(count));
}

static ALWAYS_INLINE REAL NAME(root)(REAL x)
{
    return sizeof(REAL) == sizeof(float) ? (REAL)sqrtf((float)x) : (REAL)sqrt((double)x);
}

static ALWAYS_INLINE REAL NAME(to_power)(REAL x, double power)
{
    return sizeof(REAL) == sizeof(float) ? (REAL)powf((float)x, (float)power)
                                         : (REAL)pow((double)x, power);
}

/* Copies an image (rows, columns, maps) into a zeroed one (high, wide, maps): entry (r, c) to
 * (top + r*step, top + c*step), unless that falls outside. */
static void NAME(spread)(const REAL *image, size rows, size columns, size maps, REAL *to,
                         size high, size wide, size top, size step)
{
    for (size r = 0; r < rows; r++) {
        size at = top + r * step;
        if (at < 0 || at >= high)
            continue;
        const REAL *from = image + r * columns * maps;
        REAL *row = to + at * wide * maps;
        if (step == 1 && top >= 0 && top + columns <= wide) {
            memcpy(row + top * maps, from, (size_t)NAME(bytes)(columns * maps));
            continue;
        }
        for (size c = 0; c < columns; c++)
            if (top + c * step >= 0 && top + c * step < wide)
                memcpy(row + (top + c * step) * maps, from + c * maps, (size_t)NAME(bytes)(maps));
    }
}

/* ---- convolution ---- */

/* TILE pixels at row r, column c, outputs from i on, with packed weights (K, K*maps, padded
 * outputs); only the kernel rows that lie on the image count. */
static ALWAYS_INLINE void NAME(correlate_tile)(const plane *s, const REAL *x, const REAL *packed,
                                               const REAL *bias, REAL *y, size r, size c, size i,
                                               int vectors)
{
    vector sum[TILE][2];
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            sum[n][v] = ((const loose *)(bias + i))[v];
    size row = s->kernel * s->maps, width = s->padded_outputs;
    size first = larger(0, s->top - r * s->stride);
    size last = smaller(s->kernel, s->bottom - r * s->stride);
    x += ((r * s->stride + first) * s->wide + c * s->stride) * s->maps;
    NAME(accumulate)(sum, x, s->stride * s->maps, packed + first * row * width + i,
                     (walk){last - first, row, s->wide * s->maps, 1, row * width, width}, vectors);
    y += (r * s->columns + c) * s->outputs + i;
    for (int n = 0; n < TILE && n < s->columns - c; n++)
        for (int v = 0; v < vectors; v++)
            NAME(store_some)(y + n * s->outputs + v * LANES, sum[n][v], s->outputs - i - v * LANES);
}

static void NAME(correlate)(const plane *s, const REAL *x, const REAL *packed, const REAL *bias,
                            REAL *y)
{
    for (size i = 0; i < s->outputs; i += 2 * LANES)
        for (size r = 0; r < s->rows; r++)
            for (size c = 0; c < s->columns; c += TILE)
                if (s->outputs - i > LANES)
                    NAME(correlate_tile)(s, x, packed, bias, y, r, c, i, 2);
                else
                    NAME(correlate_tile)(s, x, packed, bias, y, r, c, i, 1);
}

/* Elements of a padded image and of the TILE pixels that a tile may read behind its last one. */
static size NAME(scene_size)(const plane *s, size high)
{
    return round_up((high * s->wide + TILE * s->stride) * s->maps, LANES);
}

static int NAME(conv_forward)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *x = arrays[0], *weight = arrays[1];
    REAL *y = arrays[2];
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    size taps = s->kernel * s->kernel * s->in_maps, padded = round_up(s->out_maps, LANES);
    plane p = {wide, s->padding, s->padding + s->height, s->in_maps, s->kernel, s->stride,
               s->out_height, s->out_width, s->out_maps, padded};
    void *block;
    REAL *bias = scratch(NAME(bytes)((1 + taps) * padded + NAME(scene_size)(&p, high)), &block);
    if (bias == NULL)
        return -1;
    REAL *packed = bias + padded, *scene = packed + taps * padded;
    for (size i = 0; i < s->out_maps; i++)
        for (size q = 0; q <= taps; q++)
            bias[q * padded + i] = weight[i * (1 + taps) + q];
    for (size m = 0; m < s->images; m++) {
        NAME(spread)(x + m * s->height * s->width * s->in_maps, s->height, s->width, s->in_maps,
                     scene, high, wide, s->padding, 1);
        NAME(correlate)(&p, scene, packed, bias, y + m * p.rows * p.columns * p.outputs);
    }
    free(block);
    return 0;
}

/* dx is the correlation of dy, spread by the stride and padded by K - 1 - padding, with the
 * weights turned by half a turn and with J and I exchanged. */
static int NAME(conv_backward_data)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *dy = arrays[0], *weight = arrays[1];
    REAL *dx = arrays[2];
    size high = s->height + s->kernel - 1, wide = s->width + s->kernel - 1;
    size taps = s->kernel * s->kernel, padded = round_up(s->in_maps, LANES);
    size top = s->kernel - 1 - s->padding, bottom = top + (s->out_height - 1) * s->stride + 1;
    plane p = {wide, top, bottom, s->out_maps, s->kernel, 1,
               s->height, s->width, s->in_maps, padded};
    void *block;
    REAL *bias = scratch(NAME(bytes)((1 + taps * s->out_maps) * padded +
                                     NAME(scene_size)(&p, high)), &block);
    if (bias == NULL)
        return -1;
    REAL *packed = bias + padded, *scene = packed + taps * s->out_maps * padded;
    for (size i = 0; i < s->out_maps; i++)
        for (size delta = 0; delta < taps; delta++)
            memcpy(packed + ((taps - 1 - delta) * s->out_maps + i) * padded,
                   weight + i * (1 + taps * s->in_maps) + 1 + delta * s->in_maps,
                   (size_t)NAME(bytes)(s->in_maps));
    for (size m = 0; m < s->images; m++) {
        NAME(spread)(dy + m * s->out_height * s->out_width * s->out_maps, s->out_height,
                     s->out_width, s->out_maps, scene, high, wide, top, s->stride);
        NAME(correlate)(&p, scene, packed, bias, dx + m * p.rows * p.columns * p.outputs);
    }
    free(block);
    return 0;
}

/* sums (TILE entries from q of kernel row kr) x (outputs from i) += one image's products over the
 * output rows whose kernel row lies on the image. x is padded; sums is (K, row, padded outputs),
 * the K*J entries of a kernel row rounded up to whole tiles. */
static ALWAYS_INLINE void NAME(gradient_tile)(const conv_shape *s, const REAL *x, const REAL *dy,
                                              size padded, REAL *sums, size kr, size q, size i,
                                              int vectors)
{
    vector sum[TILE][2];
    size wide = (s->width + 2 * s->padding) * s->in_maps, step = s->stride * wide;
    size first = larger(0, (s->padding - kr + s->stride - 1) / s->stride);
    size last = smaller(s->out_height, (s->padding - kr + s->height - 1 + s->stride) / s->stride);
    size dy_row = s->out_width * padded;
    NAME(clear)(sum, vectors);
    NAME(accumulate)(sum, x + kr * wide + first * step + q, 1, dy + first * dy_row + i,
                     (walk){last - first, s->out_width, step, s->stride * s->in_maps, dy_row,
                            padded}, vectors);
    sums += (kr * round_up(s->kernel * s->in_maps, TILE) + q) * padded + i;
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            ((loose *)(sums + n * padded))[v] += sum[n][v];
}

static void NAME(gradient)(const conv_shape *s, const REAL *x, const REAL *dy, size padded,
                           REAL *sums)
{
    for (size i = 0; i < padded; i += 2 * LANES)
        for (size kr = 0; kr < s->kernel; kr++)
            for (size q = 0; q < s->kernel * s->in_maps; q += TILE)
                if (padded - i > LANES)
                    NAME(gradient_tile)(s, x, dy, padded, sums, kr, q, i, 2);
                else
                    NAME(gradient_tile)(s, x, dy, padded, sums, kr, q, i, 1);
}

/* bias (outputs) += sum of dy over one image, which is taken first: fewer roundings. */
static void NAME(bias_gradient)(const REAL *dy, size positions, size padded, REAL *bias)
{
    for (size i = 0; i < padded; i += LANES) {
        vector sum = {0};
        for (size t = 0; t < positions; t++)
            sum += *(const loose *)(dy + t * padded + i);
        *(loose *)(bias + i) += sum;
    }
}

/* out (I, 1 + K*row) from sums whose kernel rows are rounded up and whose outputs are fastest. */
static void NAME(store_gradient)(const conv_shape *s, const REAL *bias, const REAL *sums,
                                 size padded, REAL *out)
{
    size entries = s->kernel * s->in_maps, row = round_up(entries, TILE);
    for (size i = 0; i < s->out_maps; i++) {
        *out++ = bias[i];
        for (size kr = 0; kr < s->kernel; kr++)
            for (size q = 0; q < entries; q++)
                *out++ = sums[(kr * row + q) * padded + i];
    }
}

static int NAME(conv_backward_weights)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *x = arrays[0], *dy = arrays[1];
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    size padded = round_up(s->out_maps, LANES), positions = s->out_height * s->out_width;
    size sums_size = s->kernel * round_up(s->kernel * s->in_maps, TILE) * padded;
    size scene_size = round_up(high * wide * s->in_maps + TILE, LANES);
    int widen = padded != s->out_maps; /* else whole vectors of dy are read where they lie */
    void *block;
    REAL *bias = scratch(NAME(bytes)(padded + sums_size + scene_size +
                                     (widen ? positions * padded : 0)), &block);
    if (bias == NULL)
        return -1;
    REAL *sums = bias + padded, *scene = sums + sums_size, *wider = scene + scene_size;
    for (size m = 0; m < s->images; m++) {
        const REAL *errors = dy + m * positions * s->out_maps;
        for (size t = 0; t < positions && widen; t++)
            memcpy(wider + t * padded, errors + t * s->out_maps, (size_t)NAME(bytes)(s->out_maps));
        if (widen)
            errors = wider;
        NAME(spread)(x + m * s->height * s->width * s->in_maps, s->height, s->width, s->in_maps,
                     scene, high, wide, s->padding, 1);
        NAME(gradient)(s, scene, errors, padded, sums);
        NAME(bias_gradient)(errors, positions, padded, bias);
    }
    NAME(store_gradient)(s, bias, sums, padded, arrays[2]);
    free(block);
    return 0;
}

/* ---- Kronecker factor Omega: the Gram matrix of the patches, without the patches ---- */

/* Entry ((delta, j), (delta', j')) is the sum over output positions t of a[t + delta - padding, j]
 * times a[t + delta' - padding, j'], where a = 0 outside the image. With s = t + delta - padding
 * and d = delta' - delta that is a[s, j] * a[s + d, j'], summed over a window of s that depends on
 * delta alone. So the few offsets d, each summed once over every region between the windows' edges,
 * serve all pairs of taps, and no term is subtracted.
 *
 * regions is (row regions, column regions, K, J + 1, (2K-1)*J), its last three axes d_row, j and
 * (d_column + K-1)*J + j', for d_row >= 0 (the rest follows by symmetry) and, where d_row = 0,
 * d_column >= 0. Its row j = J at d = 0 has the sums of a itself. */

#define GRAM_CACHE (1 << 19) /* bytes of padded images that are summed before a result is stored */

static size NAME(region_size)(const conv_shape *s)
{
    return s->kernel * (s->in_maps + 1) * (2 * s->kernel - 1) * s->in_maps;
}

/* Images under way, padded by `border` columns left and right, and their region. */
typedef struct {
    const REAL *images;
    size count, step, height, wide, maps, border;
    size row, column, rows, columns;
} scene_block;

/* to (TILE rows from j) x (columns from i) += the region's products for one d_row, which has `rows`
 * rows with a partner on the image. */
static ALWAYS_INLINE void NAME(gram_tile)(const scene_block *b, REAL *to, size d_row, size rows,
                                          size j, size i, int vectors)
{
    vector sum[TILE][2];
    size row_step = b->wide * b->maps, columns = (2 * b->border + 1) * b->maps;
    const REAL *first = b->images + (b->row * b->wide + b->column) * b->maps;
    const REAL *x = first + b->border * b->maps + j, *w = first + d_row * row_step + i;
    NAME(clear)(sum, vectors);
    if (rows == 1) /* the images take the place of the rows */
        NAME(accumulate)(sum, x, 1, w, (walk){b->count, b->columns, b->step, b->maps, b->step,
                                              b->maps}, vectors);
    else
        for (size m = 0; m < b->count; m++)
            NAME(accumulate)(sum, x + m * b->step, 1, w + m * b->step,
                             (walk){rows, b->columns, row_step, b->maps, row_step, b->maps},
                             vectors);
    for (int n = 0; n < TILE && n < b->maps - j; n++)
        for (int v = 0; v < vectors; v++) {
            size count = columns - i - v * LANES;
            REAL *at = to + (j + n) * columns + i + v * LANES;
            NAME(store_some)(at, NAME(load_some)(at, count) + sum[n][v], count);
        }
}

/* to (K, J + 1, (2K-1)*J) += all products of the region. */
static void NAME(gram_region)(const scene_block *b, REAL *to)
{
    size columns = (2 * b->border + 1) * b->maps;
    for (size d_row = 0; d_row <= b->border; d_row++, to += (b->maps + 1) * columns) {
        size rows = smaller(b->rows, b->height - d_row - b->row);
        if (rows <= 0)
            return;
        for (size i = d_row == 0 ? b->border * b->maps : 0; i < columns; i += 2 * LANES)
            for (size j = 0; j < b->maps; j += TILE)
                if (columns - i > LANES)
                    NAME(gram_tile)(b, to, d_row, rows, j, i, 2);
                else
                    NAME(gram_tile)(b, to, d_row, rows, j, i, 1);
    }
}

/* to (J) += sum of the region's pixels. */
static void NAME(region_sums)(const scene_block *b, REAL *restrict to)
{
    for (size m = 0; m < b->count; m++)
        for (size r = b->row; r < b->row + b->rows; r++)
            for (size c = b->column; c < b->column + b->columns; c++) {
                const REAL *a = b->images + m * b->step + (r * b->wide + b->border + c) * b->maps;
                for (size j = 0; j < b->maps; j++)
                    to[j] += a[j];
            }
}

static void NAME(gram_block)(scene_block *b, const conv_shape *s, REAL *to)
{
    size sums = (s->in_maps * (2 * s->kernel - 1) + s->kernel - 1) * s->in_maps;
    for (b->row = 0; b->row < s->height; b->row += b->rows) {
        b->rows = region_end(b->row, s->height, s->kernel, s->padding) - b->row;
        for (b->column = 0; b->column < s->width; b->column += b->columns) {
            b->columns = region_end(b->column, s->width, s->kernel, s->padding) - b->column;
            NAME(gram_region)(b, to);
            NAME(region_sums)(b, to + sums);
            to += NAME(region_size)(s);
        }
    }
}

static int NAME(patch_gram_regions)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *x = arrays[0];
    REAL *regions = arrays[1];
    size border = s->kernel - 1, wide = s->width + 2 * border;
    size pixels = s->height * s->width * s->in_maps;
    size step = round_up(s->height * wide * s->in_maps, LANES);
    size capacity = smaller(s->images, 1 + GRAM_CACHE / (1 + NAME(bytes)(step)));
    size count = region_count(s->height, s->kernel, s->padding) *
                 region_count(s->width, s->kernel, s->padding);
    void *block;
    /* tiles read up to TILE rows and two vectors behind the last image */
    REAL *scenes = scratch(NAME(bytes)(capacity * step + TILE + 2 * LANES), &block);
    if (scenes == NULL)
        return -1;
    memset(regions, 0, (size_t)NAME(bytes)(count * NAME(region_size)(s)));
    for (size first = 0; first < s->images; first += capacity) {
        scene_block b = {.images = scenes, .count = smaller(capacity, s->images - first),
                         .step = step, .height = s->height, .wide = wide, .maps = s->in_maps,
                         .border = border};
        for (size m = 0; m < b.count; m++)
            NAME(spread)(x + (first + m) * pixels, s->height, s->width, s->in_maps,
                         scenes + m * step + border * s->in_maps, s->height, wide, 0, 1);
        NAME(gram_block)(&b, s, regions);
    }
    free(block);
    return 0;
}

/* to (count rows, J; row step to_step) = sum over the regions inside the windows of tap (kr, kc) of
 * the block that starts `from` in the first region, with row step from_step. */
static void NAME(window_sum)(const conv_shape *s, size kr, size kc, const REAL *from,
                             size from_step, REAL *to, size to_step, size count)
{
    size K = s->kernel, padding = s->padding;
    for (size j = 0; j < count; j++)
        memset(to + j * to_step, 0, (size_t)NAME(bytes)(s->in_maps));
    for (size r = 0; r < s->height; r = region_end(r, s->height, K, padding))
        for (size c = 0; c < s->width; c = region_end(c, s->width, K, padding)) {
            const REAL *region = from;
            from += NAME(region_size)(s);
            if (!region_in_window(r, kr, s->height, K, padding) ||
                !region_in_window(c, kc, s->width, K, padding))
                continue;
            for (size j = 0; j < count; j++) {
                const REAL *restrict p = region + j * from_step;
                REAL *restrict q = to + j * to_step;
                for (size i = 0; i < s->in_maps; i++)
                    q[i] += p[i];
            }
        }
}

/* Writes a block (maps, maps) of a matrix of `side` columns, transposed, to `mirror`. */
static void NAME(transpose)(const REAL *block, REAL *mirror, size maps, size side)
{
    for (size i = 0; i < maps; i++)
        for (size j = 0; j < maps; j++)
            mirror[i * side + j] = block[j * side + i];
}

static int NAME(patch_gram_assemble)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *regions = arrays[0];
    REAL *gram = arrays[1];
    size K = s->kernel, maps = s->in_maps, side = 1 + K * K * maps, columns = (2 * K - 1) * maps;
    gram[0] = (REAL)s->images * (REAL)(s->out_height * s->out_width);
    for (size delta = 0; delta < K * K; delta++) {
        size kr = delta / K, kc = delta % K;
        REAL *sums = gram + 1 + delta * maps, *rows = gram + (1 + delta * maps) * side;
        NAME(window_sum)(s, kr, kc, regions + maps * columns + (K - 1) * maps, 0, sums, 0, 1);
        for (size j = 0; j < maps; j++)
            rows[j * side] = sums[j];
        for (size other = delta; other < K * K; other++) {
            size d_row = other / K - kr, d_column = other % K - kc;
            const REAL *from = regions + d_row * (maps + 1) * columns + (d_column + K - 1) * maps;
            REAL *block = rows + 1 + other * maps;
            NAME(window_sum)(s, kr, kc, from, columns, block, side, maps);
            if (other > delta)
                NAME(transpose)(block, gram + (1 + other * maps) * side + 1 + delta * maps, maps,
                                side);
        }
    }
    return 0;
}

/* ---- pooling ---- */

/* The maximum over window `w` of the `count` maps from j on, at most LANES, and its offset. */
static ALWAYS_INLINE void NAME(maximum)(const pool_shape *s, pool_window w, const REAL *x, size j,
                                        size count, REAL *y, uint8_t *argmax)
{
    vector best = NAME(load_some)(x + (w.image + w.row * s->width + w.column) * s->maps + j, count);
    lanes at = {0};
    for (size r = w.row; r < w.row_end; r++)
        for (size c = w.column; c < w.column_end; c++) {
            vector value = NAME(load_some)(x + (w.image + r * s->width + c) * s->maps + j, count);
            lanes take = (value > best) | (value != value); /* a NaN is passed on, not hidden */
            int offset = (int)((r - w.row) * s->window + c - w.column);
            best = (vector)((take & (lanes)value) | (~take & (lanes)best));
            at = (take & ((lanes){0} + offset)) | (~take & at);
        }
    NAME(store_some)(y, best, count);
    byte_lanes offsets = __builtin_convertvector(at, byte_lanes);
    memcpy(argmax, &offsets, (size_t)smaller(count, LANES));
}

static int NAME(max_pool)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        for (size j = 0; j < s->maps; j += LANES)
            NAME(maximum)(s, w, arrays[0], j, s->maps - j, (REAL *)arrays[1] + t * s->maps + j,
                          (uint8_t *)arrays[2] + t * s->maps + j);
    }
    return 0;
}

/* The other passes are plain loops over the maps of a pixel, which compilers turn into vectors. */

static int NAME(max_pool_backward)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    REAL *dx = arrays[2];
    memset(dx, 0, (size_t)NAME(bytes)(s->images * s->height * s->width * s->maps));
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        const REAL *restrict from = (const REAL *)arrays[0] + t * s->maps;
        const uint8_t *restrict at = (const uint8_t *)arrays[1] + t * s->maps;
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                REAL *restrict to = dx + (w.image + r * s->width + c) * s->maps;
                uint8_t offset = (uint8_t)((r - w.row) * s->window + c - w.column);
                for (size j = 0; j < s->maps; j++)
                    to[j] += at[j] == offset ? from[j] : 0;
            }
    }
    return 0;
}

static int NAME(max_pool_tangent)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    const REAL *rx = arrays[0];
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        const uint8_t *restrict at = (const uint8_t *)arrays[1] + t * s->maps;
        REAL *restrict to = (REAL *)arrays[2] + t * s->maps;
        memset(to, 0, (size_t)NAME(bytes)(s->maps));
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                const REAL *restrict from = rx + (w.image + r * s->width + c) * s->maps;
                uint8_t offset = (uint8_t)((r - w.row) * s->window + c - w.column);
                for (size j = 0; j < s->maps; j++)
                    to[j] = at[j] == offset ? from[j] : to[j];
            }
    }
    return 0;
}

static int NAME(avg_pool)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    const REAL *x = arrays[0];
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        REAL *restrict to = (REAL *)arrays[1] + t * s->maps;
        REAL area = (REAL)((w.row_end - w.row) * (w.column_end - w.column));
        memset(to, 0, (size_t)NAME(bytes)(s->maps));
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                const REAL *restrict from = x + (w.image + r * s->width + c) * s->maps;
                for (size j = 0; j < s->maps; j++)
                    to[j] += from[j];
            }
        for (size j = 0; j < s->maps; j++)
            to[j] /= area;
    }
    return 0;
}

static int NAME(avg_pool_backward)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    REAL *dx = arrays[1];
    memset(dx, 0, (size_t)NAME(bytes)(s->images * s->height * s->width * s->maps));
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        const REAL *restrict from = (const REAL *)arrays[0] + t * s->maps;
        REAL area = (REAL)((w.row_end - w.row) * (w.column_end - w.column));
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                REAL *restrict to = dx + (w.image + r * s->width + c) * s->maps;
                for (size j = 0; j < s->maps; j++)
                    to[j] += from[j] / area;
            }
    }
    return 0;
}

/* ---- response normalisation ---- */

/* to[n] = d[n]^-power; three quarters, the published exponent, from square roots. */
static void NAME(inverse_power)(const REAL *restrict d, REAL *restrict to, size count, double power)
{
    if (power == 0.75)
        for (size n = 0; n < count; n++) {
            REAL root = NAME(root)(d[n]);
            to[n] = 1 / (root * NAME(root)(root));
        }
    else
        for (size n = 0; n < count; n++)
            to[n] = NAME(to_power)(d[n], -power);
}

/* to[n] += from[n + shift], where both lie within `count`. */
static void NAME(add_shifted)(const REAL *restrict from, REAL *restrict to, size count, size shift)
{
    size end = smaller(count, count - shift);
    for (size n = larger(0, -shift); n < end; n++)
        to[n] += from[n + shift];
}

/* sums (H, W, J) of the terms of one image over each element's neighbourhood, from `before`
 * elements before it to `after` elements after it, clipped; `adjoint` mirrors it. `line` is scratch
 * for W*J numbers. */
static void NAME(neighbour_sums)(const norm_shape *s, const REAL *terms, int adjoint, REAL *sums,
                                 REAL *line)
{
    size half = s->window / 2, before = adjoint ? s->window - 1 - half : half;
    size after = s->window - 1 - before, length = s->width * s->maps;
    memset(sums, 0, (size_t)NAME(bytes)(s->height * length));
    if (s->across) {
        for (size at = 0; at < s->height * length; at += s->maps)
            for (size shift = -before; shift <= after; shift++)
                NAME(add_shifted)(terms + at, sums + at, s->maps, shift);
        return;
    }
    for (size r = 0; r < s->height; r++) {
        memset(line, 0, (size_t)NAME(bytes)(length));
        for (size a = larger(0, r - before); a < smaller(s->height, r + after + 1); a++)
            NAME(add_shifted)(terms + a * length, line, length, 0);
        for (size shift = -before; shift <= after; shift++)
            NAME(add_shifted)(line, sums + r * length, length, shift * s->maps);
    }
}

/* Scratch for `images` images and a line of one. */
static REAL *NAME(norm_scratch)(const norm_shape *s, size images)
{
    return malloc((size_t)NAME(bytes)((images * s->height + 1) * s->width * s->maps) + 1);
}

static int NAME(response_norm)(void *const *arrays, const void *shape)
{
    const norm_shape *s = shape;
    size count = s->height * s->width * s->maps;
    REAL alpha = (REAL)s->alpha, *terms = NAME(norm_scratch)(s, 1);
    if (terms == NULL)
        return -1;
    for (size m = 0; m < s->images; m++) {
        const REAL *restrict x = (const REAL *)arrays[0] + m * count;
        REAL *restrict y = (REAL *)arrays[1] + m * count;
        REAL *restrict d = (REAL *)arrays[2] + m * count;
        for (size n = 0; n < count; n++)
            terms[n] = x[n] * x[n];
        NAME(neighbour_sums)(s, terms, 0, d, terms + count);
        for (size n = 0; n < count; n++)
            d[n] = 1 + alpha * d[n];
        NAME(inverse_power)(d, y, count, s->power);
        for (size n = 0; n < count; n++)
            y[n] *= x[n];
    }
    free(terms);
    return 0;
}

/* With shrink = d^-power, the derivative of y = x shrink at x, applied to v:
 *     out = v shrink - 2 alpha power x shrink / d * (sums of x v),
 * or its adjoint: out = v shrink - 2 alpha power x * (adjoint sums of v x shrink / d). */
static int NAME(response_norm_derivative)(void *const *arrays, const norm_shape *s, int adjoint)
{
    size count = s->height * s->width * s->maps;
    REAL slope = (REAL)(2 * s->alpha * s->power);
    REAL *terms = NAME(norm_scratch)(s, 2);
    if (terms == NULL)
        return -1;
    REAL *shrink = terms + count;
    for (size m = 0; m < s->images; m++) {
        const REAL *restrict v = (const REAL *)arrays[0] + m * count;
        const REAL *restrict x = (const REAL *)arrays[1] + m * count;
        const REAL *restrict d = (const REAL *)arrays[2] + m * count;
        REAL *restrict out = (REAL *)arrays[3] + m * count;
        NAME(inverse_power)(d, shrink, count, s->power);
        for (size n = 0; n < count; n++)
            terms[n] = adjoint ? v[n] * x[n] * shrink[n] / d[n] : x[n] * v[n];
        NAME(neighbour_sums)(s, terms, adjoint, out, shrink + count);
        for (size n = 0; n < count; n++)
            out[n] = v[n] * shrink[n] -
                     (adjoint ? slope * x[n] : slope * x[n] * shrink[n] / d[n]) * out[n];
    }
    free(terms);
    return 0;
}

static int NAME(response_norm_backward)(void *const *arrays, const void *shape)
{
    return NAME(response_norm_derivative)(arrays, shape, 1);
}

static int NAME(response_norm_tangent)(void *const *arrays, const void *shape)
{
    return NAME(response_norm_derivative)(arrays, shape, 0);
}

static pass *const NAME(kernels)[PASSES] = {
    [CONV_FORWARD] = NAME(conv_forward),
    [CONV_BACKWARD_DATA] = NAME(conv_backward_data),
    [CONV_BACKWARD_WEIGHTS] = NAME(conv_backward_weights),
    [PATCH_GRAM_REGIONS] = NAME(patch_gram_regions),
    [PATCH_GRAM_ASSEMBLE] = NAME(patch_gram_assemble),
    [MAX_POOL] = NAME(max_pool),
    [MAX_POOL_BACKWARD] = NAME(max_pool_backward),
    [MAX_POOL_TANGENT] = NAME(max_pool_tangent),
    [AVG_POOL] = NAME(avg_pool),
    [AVG_POOL_BACKWARD] = NAME(avg_pool_backward),
    [RESPONSE_NORM] = NAME(response_norm),
    [RESPONSE_NORM_BACKWARD] = NAME(response_norm_backward),
    [RESPONSE_NORM_TANGENT] = NAME(response_norm_tangent),
};

#undef LANES
#undef vector
#undef loose
#undef lanes
#undef byte_lanes
#undef scene_block
#undef REAL
#endif
