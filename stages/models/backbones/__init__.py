"""Encoders and decoders: pictures to feature maps and back."""
