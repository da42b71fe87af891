"""What a person reads of a run: tables, comparisons with published results, predictions."""
