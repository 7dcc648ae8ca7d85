"""What a tokenizer is trained against: the discriminator and the perceptual distances."""
