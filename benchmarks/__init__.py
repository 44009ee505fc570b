"""What is measured: times, accuracies and sizes, as ratios in one run."""
