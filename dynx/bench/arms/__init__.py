"""What a benchmark compares, for each task: plain, static and dynamic."""
