"""What each PEFT method adds to a base weight, computed a block of rows at a time."""
