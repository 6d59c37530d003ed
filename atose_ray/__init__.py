"""atose_ray: distributed hyper-parameter search for audio tagging.

The verbs are modules: `python -m atose_ray` lists them. The core (everything but `runtime/`) is plain PyTorch.
"""

__version__ = "0.1.0"
