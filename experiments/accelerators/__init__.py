"""jonet's programs on TPUs and GPUs: compiled for chips that are not there, or measured on those that are."""
