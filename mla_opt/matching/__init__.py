"""Finding latent attention by what a graph means, not by names or by the order of its nodes.

`attention_core` finds the attentions. `region` walks back from keys and values with what each axis
is (`axes`) and the action of each operator on axes (`axis_rules`). `cut` and `latent_region` decide
where the latent rows begin. `extraction` reads the matrices off by running the region.
"""
