"""Decode, resample and transform sound. The only room that imports soxr and torchaudio."""
