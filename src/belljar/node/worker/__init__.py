"""The worker: claims jobs, supervises attempts, accounts for room. The one room that knows both jobs and machines."""
