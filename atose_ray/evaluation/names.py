"""Names of protocols that records carry: known without PyTorch."""

CLIP_NAME = "clip"
