"""Finding latent attention by what a graph means, not by names or by the order of its nodes.

`attention_core` finds the attentions. `region` walks back from keys and values with what each axis
is (`axes`) and the action of each operator on axes (`axis_rules`). `shared_rows` cuts where that is
narrowest (`cut`), `roles` tells sequences, heads and tokens apart, `row_checks` refuses what is not
latent (`not_latent`), and `row_caches` finds the past. `latent_region` puts that together.
`extraction` reads the matrices off by running the region.
"""
