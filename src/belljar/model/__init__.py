"""Values that both sides share: jobs, scripts, images, egress, outcomes, errors, ids. No I/O."""
