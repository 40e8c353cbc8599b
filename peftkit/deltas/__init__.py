"""What an adapter changes in a base weight, computed in fp32, a block of rows at a time."""
