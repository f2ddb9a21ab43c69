"""The network of a machine: slots, NAT, egress policy, DNS, accounting. Knows machines' addresses, and no job."""
