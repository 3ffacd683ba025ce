"""Programs on top of the library: the run of a task, and the bench."""
