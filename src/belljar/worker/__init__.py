"""The worker: the claim loop, capacity, and the supervision of one attempt. The one room that knows jobs and machines."""
