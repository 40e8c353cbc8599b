"""Reports that compare recorded runs."""
