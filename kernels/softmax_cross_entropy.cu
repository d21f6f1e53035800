// kernels/softmax_cross_entropy.cu: a classifier's loss, what flows back from it, its curvature.
//
//   softmax_cross_entropy  z (M, CLASSES), labels (M) -> p = softmax(z), dz = p - onehot(label),
//                          totals (2) = [sum over examples of -log p[label], how many are wrong]
//   sampled_gradient       dz = p - onehot(class), the first class whose cumulative p exceeds the
//                          example's uniform number (where rounding leaves none, the last class that
//                          adds anything to it)
//   softmax_fisher         result (1) = scale * sum over examples of r^T (diag(p) - p p^T) s, the
//                          exact Fisher matrix of the outputs between tangents r, s (M, CLASSES)
//   softmax_fisher_product product (M, CLASSES) = (diag(p) - p p^T) r of every example
//
// An example is wrong where its label is not its first largest logit. NaN logits give NaN losses.
// The sums are taken by one block, which walks over the batch, in a fixed order: at these sizes a
// second launch would take longer than the other multiprocessors save.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes a logit: 12, 8, 12 and 12; limited by latency.
#include "block_sum.cuh"

constexpr int ROW = CLASSES | 1;  // odd: threads that walk over rows side by side hit all banks

// One block of BLOCK threads. Rows come and go in the order of memory; in between, one thread works
// on one row in shared memory.
extern "C" __global__ void __launch_bounds__(BLOCK) softmax_cross_entropy(
    const float* __restrict__ z,     // (M, CLASSES)
    const int* __restrict__ labels,  // (M)
    float* __restrict__ p,           // (M, CLASSES)
    float* __restrict__ dz,          // (M, CLASSES)
    float* __restrict__ totals,      // (2)
    int M) {
    __shared__ float rows[BLOCK * ROW];
    __shared__ int targets[BLOCK];
    float loss = 0.0f, wrong = 0.0f;
    for (int start = 0; start < M; start += BLOCK) {
        const int examples = min(BLOCK, M - start), first = start * CLASSES;
        for (int i = threadIdx.x; i < examples * CLASSES; i += BLOCK)
            rows[i / CLASSES * ROW + i % CLASSES] = z[first + i];
        __syncthreads();  // other threads loaded this thread's row
        if (threadIdx.x < examples) {
            float* row = rows + threadIdx.x * ROW;
            const int label = labels[start + threadIdx.x];
            int largest = 0;
            for (int c = 1; c < CLASSES; ++c)
                if (row[c] > row[largest]) largest = c;
            const float top = row[largest], of_label = row[label] - top;
            float sum = 0.0f;
            for (int c = 0; c < CLASSES; ++c) sum += row[c] = expf(row[c] - top);
            for (int c = 0; c < CLASSES; ++c) row[c] /= sum;
            loss += logf(sum) - of_label;
            wrong += largest != label;
            targets[threadIdx.x] = label;
        }
        __syncthreads();  // other threads store this thread's row
        // The next rows overwrite only what their thread itself reads here: no barrier after it.
        for (int i = threadIdx.x; i < examples * CLASSES; i += BLOCK) {
            const float probability = rows[i / CLASSES * ROW + i % CLASSES];
            p[first + i] = probability;
            dz[first + i] = probability - (targets[i / CLASSES] == i % CLASSES);
        }
    }
    loss = block_sum(loss);
    wrong = block_sum(wrong);
    if (threadIdx.x == 0) {
        totals[0] = loss;
        totals[1] = wrong;
    }
}

// One thread: one class of one example, which adds up p until its own class.
extern "C" __global__ void sampled_gradient(
    const float* __restrict__ p,         // (M, CLASSES)
    const float* __restrict__ uniforms,  // (M)
    float* __restrict__ dz,              // (M, CLASSES)
    int M) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= M * CLASSES) return;
    const int example = i / CLASSES, own = i % CLASSES;
    const float u = uniforms[example], *row = p + example * CLASSES;
    float before = 0.0f;
    for (int c = 0; c < own; ++c) before += row[c];
    const float through = before + row[own];
    int next = own + 1;  // the first class behind it that adds anything
#pragma unroll 1
    while (next < CLASSES && through + row[next] == through) ++next;
    const bool drawn = before <= u && before < through && (through > u || next == CLASSES);
    dz[i] = row[own] - drawn;
}

// One block of BLOCK threads; one thread, every BLOCK-th example.
extern "C" __global__ void __launch_bounds__(BLOCK) softmax_fisher(
    const float* __restrict__ p,  // (M, CLASSES)
    const float* __restrict__ r,  // (M, CLASSES)
    const float* __restrict__ s,  // (M, CLASSES), may be r
    float* __restrict__ result,   // (1)
    int M,
    float scale) {
    float sum = 0.0f;
    for (int example = threadIdx.x; example < M; example += BLOCK) {
        const int first = example * CLASSES;
        float mean_r = 0.0f, mean_s = 0.0f, covariance = 0.0f;
        for (int c = 0; c < CLASSES; ++c) {
            mean_r += p[first + c] * r[first + c];
            mean_s += p[first + c] * s[first + c];
        }
        for (int c = 0; c < CLASSES; ++c)  // from left to right: r * s can overflow where p is 0
            covariance += p[first + c] * (r[first + c] - mean_r) * (s[first + c] - mean_s);
        sum += covariance;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *result = scale * sum;
}

// One thread: one class of one example, which finds the example's mean of r for itself.
extern "C" __global__ void softmax_fisher_product(
    const float* __restrict__ p,    // (M, CLASSES)
    const float* __restrict__ r,    // (M, CLASSES)
    float* __restrict__ product,    // (M, CLASSES)
    int M) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= M * CLASSES) return;
    const int first = i / CLASSES * CLASSES;
    float mean = 0.0f;
    for (int c = 0; c < CLASSES; ++c) mean += p[first + c] * r[first + c];
    product[i] = p[i] * (r[i] - mean);
}
