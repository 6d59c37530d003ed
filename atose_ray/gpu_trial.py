"""The smallest kernel: that it runs shows that Triton works here. Importing this file needs Triton."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

import torch
import triton
import triton.language as tl


@triton.jit
def store_one(out):
    """out[0] = 1."""
    tl.store(out, 1.0)


def run_on(device: torch.device) -> None:
    """Raises what Triton raises, or RuntimeError for a wrong result."""
    out = torch.zeros(1, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
        store_one[(1,)](out)
    if float(out) != 1.0:
        raise RuntimeError("a kernel of Triton's left no result")
