"""Networks as functions of space, and the fields that they are folded into."""
