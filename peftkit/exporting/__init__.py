"""Export a run as a folder that serves its model without peftkit."""
