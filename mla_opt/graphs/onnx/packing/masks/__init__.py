"""What a mask says of one query and one key of a sequence that comes alone, without padding.

Masks are made of ranges, comparisons and the attention mask of the model's caller. Here one element
of one is followed back through what makes it, with places as expressions: not for examples, but
for all sizes at once. In a sequence by itself the caller's mask is 1 for every token, and the
position of a new token is the number of tokens before it.
"""
