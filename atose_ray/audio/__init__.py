"""Decode, resample and transform sound. The only room that imports torchaudio."""
