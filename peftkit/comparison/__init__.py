"""Compare strategies: jobs, workers, learning-rate search and the forecast of what it will take."""
