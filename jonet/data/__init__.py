"""From sources of shapes to the packed store that training reads.  No jax: worker processes never import it."""
