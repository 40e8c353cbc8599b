"""Write a first recipe for data that nobody has described yet (`peftkit new`)."""
