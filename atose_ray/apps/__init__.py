"""What a chosen model is used for."""
