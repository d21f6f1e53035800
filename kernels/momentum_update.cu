// kernels/momentum_update.cu: one step of descent with momentum, over the whole parameter vector.
//
//   velocity = momentum*velocity - learning_rate*clip_scale*(direction + weight_decay*theta)
//   theta    = theta + velocity
//   average  = averaging_decay*average + (1 - averaging_decay)*theta
//
// All vectors (count), in the order of theta. Without weight_decay or clip_scale their term or
// factor is left out. Where nonfinite_step is not negative nothing moves: what led to the first
// non-finite loss stays as it was, to be looked at.
//
// One thread: four neighbours. What changes from step to step is read from device memory, so that
// a captured graph follows it.
// Launcher: kfcnet/ops/cuda.py. Reference: kfcnet/ops/cpu.py.
// Tests: tests/test_kernels_elementwise.py.
// Bytes an element: 28, with weight decay 32; limited by memory.
#include "vector.cuh"

extern "C" __global__ void momentum_update(
    const float* __restrict__ direction,           // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ momentum,            // (1)
    const float* __restrict__ clip_scale,          // or null: (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ velocity,                  // (count)
    float* __restrict__ average,                   // (count)
    int count) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    const float rate = clip_scale ? *learning_rate * *clip_scale : *learning_rate;
    const float kept = *momentum, decay = *averaging_decay;

    Vector<float, 4> down = load_four(direction, first, count);
    Vector<float, 4> place = load_four(theta, first, count);
    Vector<float, 4> speed = load_four(velocity, first, count);
    Vector<float, 4> mean = load_four(average, first, count);
    if (weight_decay) {
        const Vector<float, 4> weight = load_four(weight_decay, first, count);
        for (int lane = 0; lane < 4; ++lane) down[lane] += weight[lane] * place[lane];
    }
    for (int lane = 0; lane < 4; ++lane) {
        speed[lane] = kept * speed[lane] - rate * down[lane];
        place[lane] += speed[lane];
        mean[lane] = decay * mean[lane] + (1.0f - decay) * place[lane];
    }
    store_four(velocity, first, count, speed);
    store_four(theta, first, count, place);
    store_four(average, first, count, mean);
}
