"""The doctor's cases and healthy models: recall, precision, and what a diagnosis and a watched step cost."""
