"""Data file readers, one per format: CSV, TSV, JSON, JSON Lines, Parquet and CoNLL."""
