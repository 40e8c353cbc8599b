"""First recipes for data that has none yet (`peftkit new`)."""
