"""Scorers: small heads over the packaged EfficientNet-Lite0 that say how well a picture suits its class or caption.

A scorer is a folder of `config.json` (a `ScorerDescription`: what it is, its figures on held-out pictures) and
`model.safetensors`; one of captions has `captions.json`, its byte pairs, as well. torch alone runs it.
"""
