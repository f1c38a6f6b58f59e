"""Finding latent attention by what a graph means, not by names or by the order of its nodes.

`attention_core` finds the attentions: one node (`fused_core`), or a softmax (`softmax_core`)
between the product of query and keys (`scores`) and the one with the values (`weighted_values`).
`region` walks back from keys and values with what each axis is (`axes`) and the action of each
operator on axes (`axis_rules`). `cut` and `latent_region` decide where the latent rows begin.
`extraction` reads the matrices off by running the region.
"""
