"""Drawing pictures: the token loop, its logit filters, its noise, and the Generator that holds them together."""
