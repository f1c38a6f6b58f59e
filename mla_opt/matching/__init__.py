"""Finding latent attention by what a graph means, not by names or by the order of its nodes.

`attention_core` finds the attentions: one node (`fused_core`), or a softmax (`softmax_core`)
between the product of query and keys (`scores`) and the one with the values (`weighted_values`).
`region` walks back from keys and values with what each axis is (`axes`) and the action of each
operator on axes (`axis_rules`). `shared_rows` cuts where that is narrowest (`cut`), `roles` tells
sequences, heads and tokens apart, `row_checks` refuses what is not latent (`not_latent`), and
`row_caches` and `held_rows` find the past. `latent_region` puts that together.
`extraction` reads the matrices off by running the region.
"""
