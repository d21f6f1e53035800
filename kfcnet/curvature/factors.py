"""A layer's two Kronecker factors (Theorem 2), and the one home of the 1/|T| of Eq. 23.

    F_l  ~  Omega_{l-1} (x) Gamma_l                                                  Eq. 18

    Omega = E[ [[A]]_H^T [[A]]_H ]     activations: SUM over the locations of an example
    Gamma = (1/|T|) E[ DS^T DS ]       derivatives: MEAN over the locations of an example

Their product has |T| once, as the Fisher block has: the gradient is a sum over |T| locations, and
under the paper's assumptions the terms at different locations are uncorrelated. The expectations
are estimated by the mean over the M examples of a mini-batch, where A are the activations and DS
the derivatives of each example's own loss at a target drawn from the model. Processes that share a
mini-batch add up what each leaves in Omega and Gamma: the running average so far is in the first
one's.

| here        | paper                         | shape                 |                     |
|-------------|-------------------------------|-----------------------|---------------------|
| inputs      | A_{l-1}                       | (M, H, W, J)          | dense: (M, 1, 1, J) |
| derivatives | D S_l                         | (M, Ho, Wo, I)        | example by example  |
| Omega       | Omega_{l-1}; dense: Psi_{l-1} | (P, P), P = 1 + K*K*J | row 0 homogeneous   |
| Gamma       | Gamma_l                       | (I, I)                |                     |
"""


def update_input_factor(ops, inputs, window, decay, Omega):
    """Omega <- decay*Omega + (1 - decay) * estimate, from inputs (M, H, W, J).

    window: (kernel, stride, padding) of the layer. decay 0 overwrites.
    """
    M = ops.ranks.whole(len(inputs))
    ops.patch_gram(
        inputs, *window, scale=(1 - decay) / M, decay=ops.ranks.of_first(decay), out=Omega
    )


def update_derivative_factor(ops, derivatives, decay, Gamma):
    """Gamma <- decay*Gamma + (1 - decay) * estimate, from derivatives (M, Ho, Wo, I)."""
    rows = derivatives.reshape(-1, derivatives.shape[-1])
    M_T = ops.ranks.whole(len(rows))  # M|T|: the 1/M of the expectation, the 1/|T| of Eq. 23
    ops.gram(rows, scale=(1 - decay) / M_T, decay=ops.ranks.of_first(decay), out=Gamma)
