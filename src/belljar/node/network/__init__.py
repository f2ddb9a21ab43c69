"""The network of a machine: slots, NAT, egress policy, DNS, traffic counters. It knows no job."""
