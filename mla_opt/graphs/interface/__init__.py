"""A model's interface: which input is which, how long it is, and what a call feeds it."""
