// kernels/adaptive_update.cu: the steps of Adagrad, RMSProp and Adam over the parameter vector.
//
// With g = gradient + weight_decay * theta, all element by element; or, is_decoupled, with g =
// gradient and theta first multiplied by 1 - learning_rate * weight_decay (Loshchilov & Hutter 2019):
//   adagrad  squares  += g^2
//            theta    -= learning_rate * g / (sqrt(squares) + epsilon)
//   rmsprop  squares  += squares_gain * (g^2 - squares)
//            theta    -= learning_rate * g / (sqrt(squares) + epsilon)
//   adam     velocity += gain * (g - velocity),  squares += squares_gain * (g^2 - squares)
//            theta    -= learning_rate * m / (sqrt(s) + epsilon)
//            with m = velocity / (1 - (1 - gain)^t), and s likewise, at step t, from 1 on
//            (Kingma & Ba 2015, Algorithm 1)
// and then average = averaging_decay*average + (1 - averaging_decay)*theta.
//
// All vectors (count), in the order of theta; null pointers and nonfinite_step as in
// momentum_update.cu. A gain is one minus a decay, and log_decay the logarithm of that decay, both
// taken in double by the host: near one a decay in float has lost digits that 1 - decay^t needs.
//
// One thread: four neighbours, in variables with a 4 behind their names. What changes from step to
// step is read from device memory.
// Launcher: kfcnet/ops/cuda/updates.py. Tests: tests/test_kernels_elementwise.py.
// Bytes an element: 28, adam 36, with weight decay 4 more; limited by memory.
#include "vector_load.cuh"

using Four = Vector<float, 4>;

// The gradient with the weight decay's part, which goes to theta itself where it is decoupled.
__device__ __forceinline__ Four decayed(const float* gradient, const float* weight_decay,
                                        Four& theta4, float learning_rate, int is_decoupled,
                                        unsigned first, int count) {
    Four g = load_four(gradient, first, count);
    if (weight_decay) {
        const Four decay4 = load_four(weight_decay, first, count);
        for (int lane = 0; lane < 4; ++lane) {
            const float part = decay4[lane] * theta4[lane];
            if (is_decoupled)
                theta4[lane] -= learning_rate * part;
            else
                g[lane] += part;
        }
    }
    return g;
}

// Store theta and fold it into its running average.
__device__ __forceinline__ void store_and_average(float* theta, float* average, const Four& theta4,
                                                  float averaging_decay, unsigned first,
                                                  int count) {
    Four average4 = load_four(average, first, count);
    for (int lane = 0; lane < 4; ++lane)
        average4[lane] = averaging_decay * average4[lane] + (1.0f - averaging_decay) * theta4[lane];
    store_four(theta, first, count, theta4);
    store_four(average, first, count, average4);
}

extern "C" __global__ void adagrad_update(
    const float* __restrict__ gradient,            // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ squares,                   // (count)
    float* __restrict__ average,                   // (count)
    int count,
    int is_decoupled,
    float epsilon) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    Four theta4 = load_four(theta, first, count), squares4 = load_four(squares, first, count);
    const Four g =
        decayed(gradient, weight_decay, theta4, *learning_rate, is_decoupled, first, count);
    for (int lane = 0; lane < 4; ++lane) {
        squares4[lane] += g[lane] * g[lane];
        theta4[lane] -= *learning_rate * g[lane] / (sqrtf(squares4[lane]) + epsilon);
    }
    store_four(squares, first, count, squares4);
    store_and_average(theta, average, theta4, *averaging_decay, first, count);
}

extern "C" __global__ void rmsprop_update(
    const float* __restrict__ gradient,            // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ squares,                   // (count)
    float* __restrict__ average,                   // (count)
    int count,
    int is_decoupled,
    float squares_gain,
    float epsilon) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    Four theta4 = load_four(theta, first, count), squares4 = load_four(squares, first, count);
    const Four g =
        decayed(gradient, weight_decay, theta4, *learning_rate, is_decoupled, first, count);
    for (int lane = 0; lane < 4; ++lane) {
        squares4[lane] += squares_gain * (g[lane] * g[lane] - squares4[lane]);
        theta4[lane] -= *learning_rate * g[lane] / (sqrtf(squares4[lane]) + epsilon);
    }
    store_four(squares, first, count, squares4);
    store_and_average(theta, average, theta4, *averaging_decay, first, count);
}

extern "C" __global__ void adam_update(
    const float* __restrict__ gradient,            // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ step,            // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ velocity,                  // (count)
    float* __restrict__ squares,                   // (count)
    float* __restrict__ average,                   // (count)
    int count,
    int is_decoupled,
    float gain,
    float log_decay,
    float squares_gain,
    float log_squares_decay,
    float epsilon) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    const float t = *step;
    const float step_size = *learning_rate / -expm1f(t * log_decay);
    const float correction = 1.0f / -expm1f(t * log_squares_decay);

    Four theta4 = load_four(theta, first, count), velocity4 = load_four(velocity, first, count);
    Four squares4 = load_four(squares, first, count);
    const Four g =
        decayed(gradient, weight_decay, theta4, *learning_rate, is_decoupled, first, count);
    for (int lane = 0; lane < 4; ++lane) {
        velocity4[lane] += gain * (g[lane] - velocity4[lane]);
        squares4[lane] += squares_gain * (g[lane] * g[lane] - squares4[lane]);
        theta4[lane] -=
            step_size * velocity4[lane] / (sqrtf(squares4[lane] * correction) + epsilon);
    }
    store_four(velocity, first, count, velocity4);
    store_four(squares, first, count, squares4);
    store_and_average(theta, average, theta4, *averaging_decay, first, count);
}
