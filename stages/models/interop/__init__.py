"""Weights of other projects: taming-transformers' checkpoints to our folders and back.

python -m stages.models.interop import last.ckpt --out pretrained/imagenet
python -m stages.models.interop export runs --out ours.ckpt
"""
