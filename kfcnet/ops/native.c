/* kfcnet.ops._native: the convolution's passes on the CPU, without patches.
 *
 * What   Optional helper of ops/cpu.py. Every function works on the images it is given, writes its result
 *        into an array of the caller, releases the GIL and keeps no state, so the caller may run one call
 *        per batch shard on threads of its own.
 * Arrays C-contiguous float32 or float64 buffers, all of one type; images are NHWC, a weight matrix is
 *        (I, 1 + K*K*J) with the bias in column 0 and tap (delta, j), delta = kr*K + kc, in column
 *        1 + delta*J + j.
 * How    All passes are one loop nest, `accumulate` below: a tile of TILE rows times one or two vectors
 *        stays in registers and takes rank-one updates. Images are copied into a zero-padded scratch, so that no loop
 *        knows about borders; the K*J inputs under one kernel row then lie side by side.
 * Where  The file includes itself once per instruction set and number type (second half of the file); the
 *        first half chooses at run time what the CPU at hand can execute.
 *
 * Letters: M images, H x W input, J input maps, I output maps, K kernel side, Ho x Wo output.
 */
#ifndef REAL /* ------------------------------ the module, included once ------------------------------ */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__)
#error "kfcnet.ops._native needs GCC's vector extensions (gcc or clang)"
#endif

typedef Py_ssize_t size;

/* Shapes of one convolution, as every pass needs them. */
typedef struct {
    size images, height, width, in_maps, out_height, out_width, out_maps, kernel, stride, padding;
} conv_shape;

/* One pass of a convolution, arrays in the order of its call; returns -1 if it ran out of memory, else 0. */
typedef int conv_pass(const void *, const void *, void *, const conv_shape *);
enum { FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS };

/* The kernels of one instruction set and number type. */
typedef struct {
    conv_pass *conv[3];
} kernels;

#define ALIGNMENT 64
#define ALWAYS_INLINE inline __attribute__((always_inline))

static size smaller(size a, size b) { return a < b ? a : b; }
static size larger(size a, size b) { return a > b ? a : b; }
static size round_up(size n, size unit) { return (n + unit - 1) / unit * unit; }

/* Zeroed scratch on a vector's boundary; `*block` is what free() takes. */
static void *scratch(size bytes, void **block)
{
    *block = calloc((size_t)bytes + ALIGNMENT, 1);
    if (*block == NULL)
        return NULL;
    return (void *)(((uintptr_t)*block + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
}

#define JOIN3(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN3(a, b, c)
#define NAME(function) JOIN(function, TARGET, REAL)

#if defined(__x86_64__)
#define TARGET avx512
#define VECTOR_BYTES 64
#define TILE 8 /* x 2 vectors: 16 of 32 registers hide the latency of two multiply-add units */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma")
#endif
#define REAL float
#include "native.c"
#undef REAL
#define REAL double
#include "native.c"
#undef REAL
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
#define TILE 4 /* x 2 vectors: 8 of 16 registers, and three for the operands */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REAL float
#include "native.c"
#undef REAL
#define REAL double
#include "native.c"
#undef REAL
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
#define TILE 4
#define REAL float
#include "native.c"
#undef REAL
#define REAL double
#include "native.c"
#undef REAL
#undef TARGET
#undef VECTOR_BYTES
#undef TILE

/* Instruction sets, best first; `of_float` and `of_double` are their kernels. */
typedef struct {
    const char *name;
    const kernels *of_float, *of_double;
} target;

static const target targets[] = {
#if defined(__x86_64__)
    {"avx512", &kernels_avx512_float, &kernels_avx512_double},
    {"avx2", &kernels_avx2_float, &kernels_avx2_double},
#endif
    {"baseline", &kernels_baseline_float, &kernels_baseline_double},
};
#define TARGETS ((int)(sizeof targets / sizeof targets[0]))

static int runs_here(const target *t)
{
#if defined(__x86_64__)
    if (t->of_float == &kernels_avx512_float)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
    if (t->of_float == &kernels_avx2_float)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    (void)t;
    return 1;
}

/* ---- arguments ---- */

/* A call's arguments as they are taken in: the buffers held, and their common number type ('f' or 'd'). */
#define MAX_ARRAYS 4
typedef struct {
    const char *function;
    PyObject *const *args;
    size given, taken;
    Py_buffer buffers[MAX_ARRAYS];
    int held;
    char real;
} call;

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
    return f[1] == '\0' ? f[0] : '?';
}

/* The next argument as a C-contiguous array of `ndim` axes; `real` arrays share one floating type. */
static Py_buffer *take_array(call *c, const char *name, int ndim, int writable, int real)
{
    Py_buffer *b = &c->buffers[c->held];
    PyObject *object = c->args[c->taken++];
    if (!PyObject_CheckBuffer(object)) {
        PyErr_Format(PyExc_TypeError, "%s: %s must be an array, not %.100s", c->function, name,
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    if (PyObject_GetBuffer(object, b, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) < 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: %s must be C-contiguous%s", c->function, name,
                     writable ? " and writable" : "");
        return NULL;
    }
    c->held++;
    char format = format_of(b);
    if (real ? (format != 'f' && format != 'd') : format != 'B') {
        PyErr_Format(PyExc_TypeError, "%s: %s must be %s, not buffer format '%s'", c->function, name,
                     real ? "float32 or float64" : "uint8", b->format == NULL ? "B" : b->format);
        return NULL;
    }
    if (real && c->real != '\0' && c->real != format) {
        PyErr_Format(PyExc_TypeError, "%s: %s must have the type of the arrays before it", c->function, name);
        return NULL;
    }
    if (real)
        c->real = format;
    if (b->ndim != ndim) {
        PyErr_Format(PyExc_ValueError, "%s: %s must have %d axes, not %d", c->function, name, ndim, b->ndim);
        return NULL;
    }
    return b;
}

/* The next argument as an integer of at least `least`; -1 with an error set if it is none. */
static size take_size(call *c, const char *name, size least)
{
    size value = PyNumber_AsSsize_t(c->args[c->taken++], PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (value < least) {
        PyErr_Format(PyExc_ValueError, "%s: %s must be at least %zd, not %zd", c->function, name, least, value);
        return -1;
    }
    return value;
}

/* The kernels for the call's number type: of the instruction set named by an optional last argument. */
static const kernels *take_kernels(call *c)
{
    PyObject *name = c->taken < c->given ? c->args[c->taken++] : NULL;
    for (int t = 0; t < TARGETS; t++)
        if (runs_here(&targets[t]) &&
            (name == NULL || (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, targets[t].name) == 0)))
            return c->real == 'f' ? targets[t].of_float : targets[t].of_double;
    PyErr_Format(PyExc_ValueError, "%s: target %R is not one of kfcnet.ops._native.targets", c->function, name);
    return NULL;
}

static int check_count(call *c, size count, const char *signature)
{
    if (c->given == count || c->given == count + 1)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes (%s[, target]), but got %zd arguments", c->function, signature, c->given);
    return -1;
}

/* The three sizes of a convolution, and the output size they lead to. */
static int take_geometry(call *c, conv_shape *s)
{
    if ((s->kernel = take_size(c, "kernel", 1)) < 0 || (s->stride = take_size(c, "stride", 1)) < 0 ||
        (s->padding = take_size(c, "padding", 0)) < 0)
        return -1;
    if (s->height + 2 * s->padding < s->kernel || s->width + 2 * s->padding < s->kernel) {
        PyErr_Format(PyExc_ValueError, "%s: kernel %zd does not fit into a %zd x %zd image padded by %zd",
                     c->function, s->kernel, s->height, s->width, s->padding);
        return -1;
    }
    s->out_height = (s->height + 2 * s->padding - s->kernel) / s->stride + 1;
    s->out_width = (s->width + 2 * s->padding - s->kernel) / s->stride + 1;
    return 0;
}

/* Do inputs (M, H, W, J), outputs (M, Ho, Wo, I) and weights (I, 1 + K*K*J) belong together? */
static int check_conv(const call *c, const conv_shape *s, const char *out_name, const Py_buffer *out,
                      const char *weight_name, const Py_buffer *weight)
{
    if (out->shape[0] != s->images || out->shape[1] != s->out_height || out->shape[2] != s->out_width) {
        PyErr_Format(PyExc_ValueError, "%s: %s must be (%zd, %zd, %zd, I), not (%zd, %zd, %zd, %zd)", c->function,
                     out_name, s->images, s->out_height, s->out_width, out->shape[0], out->shape[1], out->shape[2],
                     out->shape[3]);
        return -1;
    }
    size columns = 1 + s->kernel * s->kernel * s->in_maps;
    if (weight->shape[0] != s->out_maps || weight->shape[1] != columns) {
        PyErr_Format(PyExc_ValueError, "%s: %s must be (%zd, %zd), not (%zd, %zd)", c->function, weight_name,
                     s->out_maps, columns, weight->shape[0], weight->shape[1]);
        return -1;
    }
    return 0;
}

/* Where the passes differ: names and order of the arrays (the last one is written), and which of them is the
 * image, the output and the weight. */
typedef struct {
    const char *function, *signature, *names[3];
    int image, output, weight;
} conv_call;

static const conv_call conv_calls[] = {
    [FORWARD] = {"conv_forward", "x, weight, y, kernel, stride, padding", {"x", "weight", "y"}, 0, 2, 1},
    [BACKWARD_DATA] = {"conv_backward_data", "dy, weight, dx, kernel, stride, padding", {"dy", "weight", "dx"}, 2, 0, 1},
    [BACKWARD_WEIGHTS] = {"conv_backward_weights", "x, dy, out, kernel, stride, padding", {"x", "dy", "out"}, 0, 1, 2},
};

static PyObject *run_conv(int pass, PyObject *const *args, Py_ssize_t count)
{
    const conv_call *what = &conv_calls[pass];
    call c = {.function = what->function, .args = args, .given = count};
    conv_shape s;
    const kernels *k;
    PyObject *result = NULL;
    if (check_count(&c, 6, what->signature) < 0)
        return NULL;
    for (int a = 0; a < 3; a++)
        if (take_array(&c, what->names[a], a == what->weight ? 2 : 4, a == 2, 1) == NULL)
            goto done;
    const Py_buffer *image = &c.buffers[what->image], *output = &c.buffers[what->output];
    s.images = image->shape[0], s.height = image->shape[1], s.width = image->shape[2], s.in_maps = image->shape[3];
    s.out_maps = output->shape[3];
    if (take_geometry(&c, &s) < 0 ||
        check_conv(&c, &s, what->names[what->output], output, what->names[what->weight], &c.buffers[what->weight]) < 0 ||
        (k = take_kernels(&c)) == NULL)
        goto done;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = k->conv[pass](c.buffers[0].buf, c.buffers[1].buf, c.buffers[2].buf, &s);
    Py_END_ALLOW_THREADS
    result = status < 0 ? PyErr_NoMemory() : Py_NewRef(Py_None);
done:
    release(&c);
    return result;
}

static PyObject *conv_forward(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    return run_conv(FORWARD, args, count);
}

static PyObject *conv_backward_data(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    return run_conv(BACKWARD_DATA, args, count);
}

static PyObject *conv_backward_weights(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    return run_conv(BACKWARD_WEIGHTS, args, count);
}

#define METHOD(name, doc) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, doc}
static PyMethodDef methods[] = {
    METHOD(conv_forward, "conv_forward(x, weight, y, kernel, stride, padding[, target])\n\n"
                         "y = bias + x convolved with the weight; x (M, H, W, J), y (M, Ho, Wo, I)."),
    METHOD(conv_backward_data, "conv_backward_data(dy, weight, dx, kernel, stride, padding[, target])\n\n"
                               "dx (M, H, W, J) = the derivatives with respect to x."),
    METHOD(conv_backward_weights, "conv_backward_weights(x, dy, out, kernel, stride, padding[, target])\n\n"
                                  "out (I, 1 + K*K*J) = the derivatives with respect to the weight, summed over\n"
                                  "the images of x; column 0 belongs to the bias."),
    {NULL, NULL, 0, NULL}};

/* `targets`: the instruction sets this CPU can run, best first. */
static int add_targets(PyObject *module)
{
    PyObject *names = PyList_New(0), *tuple = NULL;
    int status = names == NULL ? -1 : 0;
    for (int t = 0; status == 0 && t < TARGETS; t++) {
        if (!runs_here(&targets[t]))
            continue;
        PyObject *name = PyUnicode_FromString(targets[t].name);
        status = name == NULL ? -1 : PyList_Append(names, name);
        Py_XDECREF(name);
    }
    if (status == 0 && (tuple = PyList_AsTuple(names)) != NULL)
        status = PyModule_AddObjectRef(module, "targets", tuple);
    Py_XDECREF(tuple);
    Py_XDECREF(names);
    return tuple == NULL ? -1 : status;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)add_targets},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Convolutions, pooling and Kronecker factors on the CPU, vectorised for the machine at hand.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}

#else /* ------------------- the kernels, included once per TARGET and REAL ------------------- */

#define LANES ((size)(VECTOR_BYTES / sizeof(REAL)))
#define vector NAME(vector)
#define loose NAME(loose)
typedef REAL vector __attribute__((vector_size(VECTOR_BYTES)));
/* The same at any address, as it lies in arrays of REAL. */
typedef REAL loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

/* Steps, in elements, of the two loops of `accumulate`. */
#define walk NAME(walk)
typedef struct {
    size outer, inner;     /* number of iterations */
    size x_outer, x_inner; /* how far x moves */
    size w_outer, w_inner; /* how far w moves */
} walk;

/* sum[n][v] += sum over outer a, inner b of x[a*x_outer + b*x_inner + n*x_tile] * (vector v at w[a*w_outer + b*w_inner]).
 * `vectors` (1 or 2) is a constant where this is inlined, so that `sum` lives in registers. */
static ALWAYS_INLINE void NAME(accumulate)(vector sum[TILE][2], const REAL *x, size x_tile, const REAL *w, walk s,
                                           int vectors)
{
    for (size a = 0; a < s.outer; a++) {
        const REAL *restrict p = x + a * s.x_outer, *restrict q = w + a * s.w_outer;
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

/* Stores the first `count` numbers of `from`, at most LANES. */
static ALWAYS_INLINE void NAME(store_some)(REAL *to, vector from, size count)
{
    if (count >= LANES)
        *(loose *)to = from;
    else
        memcpy(to, &from, (size_t)count * sizeof(REAL));
}

/* ---- convolution: scratch layouts ---- */

/* Copies an image (rows, columns, maps) into a zeroed one of `wide` columns, entry (r, c) to (top + r*step, top + c*step);
 * entries that fall outside the `high` x `wide` scratch are left out. */
static void NAME(spread)(const REAL *image, size rows, size columns, size maps, REAL *to, size high, size wide, size top,
                         size step)
{
    for (size r = 0; r < rows; r++) {
        size at = top + r * step;
        if (at < 0 || at >= high)
            continue;
        const REAL *from = image + r * columns * maps;
        REAL *row = to + at * wide * maps;
        if (step == 1 && top >= 0 && top + columns <= wide) {
            memcpy(row + top * maps, from, (size_t)(columns * maps) * sizeof(REAL));
            continue;
        }
        for (size c = 0; c < columns; c++)
            if (top + c * step >= 0 && top + c * step < wide)
                memcpy(row + (top + c * step) * maps, from + c * maps, (size_t)maps * sizeof(REAL));
    }
}

/* Correlation of one padded image (`wide` columns, maps; empty but for rows `top` to `bottom`) with packed weights
 * ((K, K*maps, padded outputs), the outputs rounded up to whole vectors), TILE pixels of a row at a time. */
#define plane NAME(plane)
typedef struct {
    size wide, top, bottom, maps, kernel, stride; /* input and kernel */
    size rows, columns, outputs, padded_outputs;  /* output */
} plane;

/* One tile at row r, column c, outputs from i on: only the kernel rows that lie on the image count. */
static ALWAYS_INLINE void NAME(correlate_tile)(const plane *s, const REAL *x, const REAL *packed, const REAL *bias,
                                               REAL *y, size r, size c, size i, int vectors)
{
    vector sum[TILE][2];
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            sum[n][v] = ((const vector *)(bias + i))[v];
    size row = s->kernel * s->maps, first = larger(0, s->top - r * s->stride);
    size last = smaller(s->kernel, s->bottom - r * s->stride);
    NAME(accumulate)(sum, x + ((r * s->stride + first) * s->wide + c * s->stride) * s->maps, s->stride * s->maps,
                     packed + first * row * s->padded_outputs + i,
                     (walk){last - first, row, s->wide * s->maps, 1, row * s->padded_outputs, s->padded_outputs}, vectors);
    y += (r * s->columns + c) * s->outputs + i;
    for (int n = 0; n < TILE && n < s->columns - c; n++)
        for (int v = 0; v < vectors; v++)
            NAME(store_some)(y + n * s->outputs + v * LANES, sum[n][v], s->outputs - i - v * LANES);
}

static void NAME(correlate)(const plane *s, const REAL *x, const REAL *packed, const REAL *bias, REAL *y)
{
    for (size i = 0; i < s->outputs; i += 2 * LANES)
        for (size r = 0; r < s->rows; r++)
            for (size c = 0; c < s->columns; c += TILE)
                if (s->outputs - i > LANES)
                    NAME(correlate_tile)(s, x, packed, bias, y, r, c, i, 2);
                else
                    NAME(correlate_tile)(s, x, packed, bias, y, r, c, i, 1);
}

/* ---- convolution: the three passes ---- */

/* A tile may read up to TILE - 1 pixels past the last one of a row: scratch images are longer by that much. */
static size NAME(slack)(const plane *s) { return TILE * s->stride * s->maps; }

static int NAME(conv_forward)(const void *x, const void *weight, void *y, const conv_shape *s)
{
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    size row = s->kernel * s->in_maps, taps = s->kernel * row, padded = round_up(s->out_maps, LANES);
    plane p = {wide, s->padding, s->padding + s->height, s->in_maps, s->kernel, s->stride,
               s->out_height, s->out_width, s->out_maps, padded};
    size image = round_up(high * wide * s->in_maps + NAME(slack)(&p), LANES);
    void *block;
    REAL *bias = scratch(((1 + taps) * padded + image) * (size)sizeof(REAL), &block);
    if (bias == NULL)
        return -1;
    REAL *packed = bias + padded, *scene = packed + taps * padded;
    for (size i = 0; i < s->out_maps; i++)
        for (size q = 0; q <= taps; q++)
            bias[q * padded + i] = ((const REAL *)weight)[i * (1 + taps) + q];
    for (size m = 0; m < s->images; m++) {
        NAME(spread)((const REAL *)x + m * s->height * s->width * s->in_maps, s->height, s->width, s->in_maps, scene,
                     high, wide, s->padding, 1);
        NAME(correlate)(&p, scene, packed, bias, (REAL *)y + m * s->out_height * s->out_width * s->out_maps);
    }
    free(block);
    return 0;
}

/* dx is the correlation of dy, spread by the stride and padded by K - 1 - padding, with the weights turned by half a
 * turn and with J and I exchanged. */
static int NAME(conv_backward_data)(const void *dy, const void *weight, void *dx, const conv_shape *s)
{
    size high = s->height + s->kernel - 1, wide = s->width + s->kernel - 1;
    size taps = s->kernel * s->kernel, padded = round_up(s->in_maps, LANES), top = s->kernel - 1 - s->padding;
    plane p = {wide, top, top + (s->out_height - 1) * s->stride + 1, s->out_maps, s->kernel, 1,
               s->height, s->width, s->in_maps, padded};
    size image = round_up(high * wide * s->out_maps + NAME(slack)(&p), LANES);
    void *block;
    REAL *bias = scratch(((1 + taps * s->out_maps) * padded + image) * (size)sizeof(REAL), &block);
    if (bias == NULL)
        return -1;
    REAL *packed = bias + padded, *scene = packed + taps * s->out_maps * padded;
    for (size i = 0; i < s->out_maps; i++)
        for (size delta = 0; delta < taps; delta++)
            memcpy(packed + ((taps - 1 - delta) * s->out_maps + i) * padded,
                   (const REAL *)weight + i * (1 + taps * s->in_maps) + 1 + delta * s->in_maps,
                   (size_t)s->in_maps * sizeof(REAL));
    for (size m = 0; m < s->images; m++) {
        NAME(spread)((const REAL *)dy + m * s->out_height * s->out_width * s->out_maps, s->out_height, s->out_width,
                     s->out_maps, scene, high, wide, top, s->stride);
        NAME(correlate)(&p, scene, packed, bias, (REAL *)dx + m * s->height * s->width * s->in_maps);
    }
    free(block);
    return 0;
}

/* sums (TILE entries q of kernel row kr) x (outputs i) += one image's products over the output rows whose kernel row
 * lies on the image; x is padded, `sums` is (K, row, padded outputs), a kernel row's K*J entries rounded up to tiles. */
static ALWAYS_INLINE void NAME(gradient_tile)(const conv_shape *s, const REAL *x, const REAL *dy, size padded, REAL *sums,
                                              size kr, size q, size i, int vectors)
{
    vector sum[TILE][2];
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            sum[n][v] = (vector){0};
    size wide = (s->width + 2 * s->padding) * s->in_maps, step = s->stride * wide;
    size first = larger(0, (s->padding - kr + s->stride - 1) / s->stride);
    size last = smaller(s->out_height, (s->padding - kr + s->height - 1 + s->stride) / s->stride);
    NAME(accumulate)(sum, x + kr * wide + first * step + q, 1, dy + first * s->out_width * padded + i,
                     (walk){last - first, s->out_width, step, s->stride * s->in_maps, s->out_width * padded, padded},
                     vectors);
    size row = round_up(s->kernel * s->in_maps, TILE);
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            ((vector *)(sums + (kr * row + q + n) * padded + i))[v] += sum[n][v];
}

static void NAME(gradient)(const conv_shape *s, const REAL *x, const REAL *dy, size padded, REAL *sums)
{
    for (size i = 0; i < padded; i += 2 * LANES)
        for (size kr = 0; kr < s->kernel; kr++)
            for (size q = 0; q < s->kernel * s->in_maps; q += TILE)
                if (padded - i > LANES)
                    NAME(gradient_tile)(s, x, dy, padded, sums, kr, q, i, 2);
                else
                    NAME(gradient_tile)(s, x, dy, padded, sums, kr, q, i, 1);
}

/* bias (outputs) += sum of dy over the positions of one image, which are summed first: fewer roundings. */
static void NAME(bias_gradient)(const REAL *dy, size positions, size padded, REAL *bias)
{
    for (size i = 0; i < padded; i += LANES) {
        vector sum = {0};
        for (size t = 0; t < positions; t++)
            sum += *(const loose *)(dy + t * padded + i);
        *(vector *)(bias + i) += sum;
    }
}

static int NAME(conv_backward_weights)(const void *x, const void *dy, void *out, const conv_shape *s)
{
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding, padded = round_up(s->out_maps, LANES);
    size entries = s->kernel * s->in_maps, row = round_up(entries, TILE), positions = s->out_height * s->out_width;
    size image = round_up(high * wide * s->in_maps + TILE, LANES);
    size errors = padded == s->out_maps ? 0 : positions * padded; /* whole vectors are read where they lie */
    void *block;
    REAL *bias = scratch(((1 + s->kernel * row) * padded + image + errors) * (size)sizeof(REAL), &block);
    if (bias == NULL)
        return -1;
    REAL *sums = bias + padded, *scene = sums + s->kernel * row * padded, *widened = scene + image;
    for (size m = 0; m < s->images; m++) {
        const REAL *error = (const REAL *)dy + m * positions * s->out_maps;
        for (size t = 0; t < positions && errors; t++)
            memcpy(widened + t * padded, error + t * s->out_maps, (size_t)s->out_maps * sizeof(REAL));
        NAME(spread)((const REAL *)x + m * s->height * s->width * s->in_maps, s->height, s->width, s->in_maps, scene,
                     high, wide, s->padding, 1);
        NAME(gradient)(s, scene, errors ? widened : error, padded, sums);
        NAME(bias_gradient)(errors ? widened : error, positions, padded, bias);
    }
    for (size i = 0; i < s->out_maps; i++) {
        REAL *to = (REAL *)out + i * (1 + s->kernel * entries);
        *to++ = bias[i];
        for (size kr = 0; kr < s->kernel; kr++)
            for (size q = 0; q < entries; q++)
                *to++ = sums[(kr * row + q) * padded + i];
    }
    free(block);
    return 0;
}

static const kernels NAME(kernels) = {
    .conv = {NAME(conv_forward), NAME(conv_backward_data), NAME(conv_backward_weights)},
};

#undef LANES
#undef vector
#undef loose
#undef walk
#undef plane
#endif
