"""Tags as tensors: the tag autoencoder."""
