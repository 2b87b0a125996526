"""The state of the neurons in PyTorch, CuPy and NumPy, without a copy.

    python examples/state_in_pytorch.py

`Activity.views()` gives the arrays themselves. They speak DLPack, and on a GPU `__cuda_array_interface__`, too. The neurons go on from what
you write there. PyTorch is used if it is installed.
"""

import numpy as np

import neurogen_numba as ng


def arrays_of(views):
    """The same memory, as arrays of PyTorch where it is installed, else of the library that made it: NumPy, or CuPy on a GPU."""
    try:
        import torch
    except ImportError:
        return views
    return {name: torch.from_dlpack(array) for name, array in views.items()}


def main(model=None):
    model = model or ng.NeuroGenModel.from_preset("nano", vocab_size=100)
    act = model.activity(16, 4)  # segments of 16 tokens, 4 sequences side by side
    ids = np.random.default_rng(0).integers(0, 100, (17, 4)).astype(np.int32)
    arrays = arrays_of(act.views())
    v = arrays["pfc.v"]
    print(f"before any token, the membranes of PFC {tuple(v.shape)} are {float(abs(v).max())}")

    model.score(act, ids[:-1], ids[1:])
    model.backend.synchronize()  # the brain works on a stream of its own
    print(f"after 16 tokens the largest one is {float(v.max()):.3f}, in an array of {type(v).__module__.partition('.')[0]}")

    for name, array in arrays.items():  # silence the whole brain between two segments
        if name.endswith((".v", ".a", ".y")):
            array[...] = 0
    print(f"set to 0 from outside, the neurons see {float(abs(act.views()['pfc.v']).max())}")
    return act, arrays


if __name__ == "__main__":
    main()
