"""Token rows in, gradients back. weight [V, E] float32; tokens [C, B] int32, in range (the model checks)."""

from .jit import cpu_serial


@cpu_serial()
def embedding_forward_cpu(x, weight, tokens):
    """x [C, B, E] = the rows of the tokens."""
    C, B = tokens.shape
    for t in range(C):
        for b in range(B):
            x[t, b] = weight[tokens[t, b]]


@cpu_serial()
def embedding_backward_cpu(d_weight, dx, tokens):
    """Add dx [C, B, E] to the rows of d_weight [V, E], in the order of the tokens."""
    C, B = tokens.shape
    for t in range(C):
        for b in range(B):
            row, dx_tb = d_weight[tokens[t, b]], dx[t, b]
            for e in range(row.size):
                row[e] += dx_tb[e]
