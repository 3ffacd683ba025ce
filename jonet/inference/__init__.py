"""After training: codes for new shapes, grids, surfaces."""
