"""PyTorch programs, in and out of the one form that the graph adapter works on.

`lifted_program` is that form. `from_exported` and `from_module` bring programs into it,
`to_exported` and `to_module` bring them back; `functionalize` and `recompose` tidy them first.
"""
