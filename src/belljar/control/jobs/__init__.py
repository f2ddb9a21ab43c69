"""The job: its model, states and transitions, and the service that submits, cancels and waits. No I/O of its own."""
