"""Programs on top of the library: training runs, comparisons and studies, and the benchmark."""
